"""The admin API: whose tenants and keys somebody may touch, what a change does at once, and what is written down of it."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hortator.app import App
from hortator.store.audit import Actor
from hortator.tenancy.keys import create_key, find_key, revoke_key
from tests.api.conftest import Client

TENANTS = "/api/v1/admin/tenants"
KEYS = "/api/v1/admin/keys"
AUDIT = "/api/v1/admin/audit"


async def tenant(operator: Client, namespace: str, **terms: Any) -> dict[str, Any]:
    body = {"name": namespace.upper(), "namespace": namespace, **terms}
    made: dict[str, Any] = await operator.ok("POST", TENANTS, body, status=201)
    return made


async def key(app: App, maker: Client, **terms: Any) -> tuple[dict[str, Any], Client]:
    made: dict[str, Any] = await maker.ok("POST", KEYS, {"name": "k", **terms}, status=201)
    return made, Client(app, made["key"])


async def actions(operator: Client, **query: str) -> list[str]:
    rest = "&".join(f"{name}={value}" for name, value in query.items())
    return [entry["action"] for entry in (await operator.ok("GET", f"{AUDIT}?{rest}"))["data"]]


async def test_a_tenant_is_made_found_changed_and_disabled(operator: Client) -> None:
    """R-000-66, R-000-67, R-000-72, R-000-76."""
    made = await tenant(
        operator,
        "legal",
        limits=["5000 Tokens/hour"],
        allowed_models=["hortator/legal-*"],
        priority="high",
        data_retention="7 years",
    )
    assert made["limits"] == ["5000 tokens/hour"]
    assert (made["priority"], made["data_retention"], made["disabled_at"]) == ("high", "7 years", None)
    assert await operator.ok("GET", f"{TENANTS}/{made['id']}") == made
    assert await operator.ok("GET", f"{TENANTS}/legal") == made
    change = {"name": "Law", "limits": None, "priority": None, "data_retention": "30 days"}
    changed = await operator.ok("PATCH", f"{TENANTS}/legal", change)
    assert (changed["name"], changed["limits"], changed["priority"]) == ("Law", [], "standard")
    assert (changed["data_retention"], changed["allowed_models"]) == ("30 days", ["hortator/legal-*"])
    assert (await operator.ok("DELETE", f"{TENANTS}/legal"))["disabled_at"] is not None
    assert (await operator.ok("PATCH", f"{TENANTS}/legal", {"disabled": False}))["disabled_at"] is None


async def test_a_key_is_shown_once_and_never_again(app: App, operator: Client) -> None:
    """R-000-77."""
    made, client = await key(app, operator, permissions=["admin:keys"])
    assert made["key"].startswith("hrt_sk_")
    await client.ok("GET", f"{KEYS}/{made['id']}")
    for path in (f"{KEYS}/{made['id']}", KEYS, AUDIT):
        reply = await operator.call("GET", path)
        assert made["key"] not in reply.text
        assert reply.headers["cache-control"] == "no-store"


async def test_the_terms_of_a_key_are_kept_and_returned(app: App, operator: Client) -> None:
    """R-000-73."""
    until = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    terms = {
        "permissions": ["usage:read"],
        "allowed_models": ["groq/*"],
        "limits": ["60 requests/minute"],
        "priority": "low",
        "data_retention": "30 days",
    }
    made, _ = await key(app, operator, expires_at=until, **terms)
    found = await operator.ok("GET", f"{KEYS}/{made['id']}")
    assert {name: found[name] for name in terms} == terms
    assert datetime.fromisoformat(found["expires_at"]) == datetime.fromisoformat(until)
    changed = await operator.ok("PATCH", f"{KEYS}/{made['id']}", {"name": "n", "expires_at": None, "priority": None})
    assert (changed["name"], changed["expires_at"], changed["priority"]) == ("n", None, None)
    assert changed["limits"] == ["60 requests/minute"]


async def test_a_change_counts_at_once_in_this_process(app: App, operator: Client) -> None:
    made, client = await key(app, operator, permissions=["admin:keys"])
    await client.ok("GET", KEYS)
    await operator.ok("PATCH", f"{KEYS}/{made['id']}", {"permissions": []})
    assert await client.refused("GET", KEYS) == (403, "permission_required")
    await operator.ok("PATCH", f"{KEYS}/{made['id']}", {"permissions": ["admin:keys"]})
    await client.ok("GET", KEYS)
    await operator.ok("POST", f"{KEYS}/{made['id']}/revoke")
    assert await client.refused("GET", KEYS) == (401, "revoked_api_key")


async def test_the_keys_of_a_disabled_tenant_are_refused_until_it_is_enabled(app: App, operator: Client) -> None:
    await tenant(operator, "a")
    _, client = await key(app, operator, tenant="a", permissions=["admin:keys"])
    await client.ok("GET", KEYS)
    await operator.ok("DELETE", f"{TENANTS}/a")
    assert await client.refused("GET", KEYS) == (401, "tenant_disabled")
    await operator.ok("PATCH", f"{TENANTS}/a", {"disabled": False})
    await client.ok("GET", KEYS)


async def test_nobody_disables_the_tenant_it_sits_in(operator: Client) -> None:
    assert await operator.refused("DELETE", f"{TENANTS}/default") == (400, "own_tenant")


async def test_rotation_gives_a_new_key_and_keeps_the_old_one_for_the_overlap(app: App, operator: Client) -> None:
    """R-000-73."""
    made, client = await key(app, operator, permissions=["admin:keys"], limits=["9 usd/day"], priority="low")
    rotated = await operator.ok("POST", f"{KEYS}/{made['id']}/rotate", {"overlap_seconds": 3600})
    new = Client(app, rotated["new"]["key"])
    assert (rotated["new"]["limits"], rotated["new"]["priority"]) == (["9 usd/day"], "low")
    assert (rotated["old"]["state"], rotated["old"]["replaced_by"]) == ("replaced", rotated["new"]["id"])
    await client.ok("GET", KEYS)
    await new.ok("GET", KEYS)
    assert await operator.refused("POST", f"{KEYS}/{made['id']}/rotate", {}) == (400, "key_not_active")
    at_once = await operator.ok("POST", f"{KEYS}/{rotated['new']['id']}/rotate", {"overlap_seconds": 0})
    assert at_once["old"]["state"] == "expired"
    assert await new.refused("GET", KEYS) == (401, "expired_api_key")


async def test_lists_are_cut_into_pages_that_hold_everything_once(app: App, operator: Client) -> None:
    for number in range(5):
        await tenant(operator, f"t{number}")
        await key(app, operator, tenant=f"t{number}", name=str(number))
    for path, count in ((TENANTS, 6), (KEYS, 6), (AUDIT, 10)):
        seen: list[str] = []
        cursor = ""
        while True:
            page = await operator.ok("GET", f"{path}?limit=2{cursor}")
            seen += [one["id"] for one in page["data"]]
            if page["next_cursor"] is None or len(seen) > 50:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert len(seen) == len(set(seen)) >= count
    only = await operator.ok("GET", f"{KEYS}?tenant=t3")
    assert [one["name"] for one in only["data"]] == ["3"]


@pytest.fixture
async def theirs(operator: Client) -> dict[str, Any]:
    """Another tenant with a key in it."""
    await tenant(operator, "theirs")
    made: dict[str, Any] = await operator.ok("POST", KEYS, {"name": "x", "tenant": "theirs"}, status=201)
    return made


async def test_a_tenants_administrator_sees_and_changes_only_its_own(
    app: App, operator: Client, theirs: dict[str, Any]
) -> None:
    """R-000-89."""
    await tenant(operator, "ours")
    own, boss = await key(app, operator, tenant="ours", permissions=["admin:keys", "admin:tenants"])
    assert [one["namespace"] for one in (await boss.ok("GET", TENANTS))["data"]] == ["ours"]
    assert [one["id"] for one in (await boss.ok("GET", KEYS))["data"]] == [own["id"]]
    for path in ("theirs", theirs["tenant_id"], "default", "nobody"):
        assert await boss.refused("GET", f"{TENANTS}/{path}") == (404, "tenant_not_found")
        assert await boss.refused("PATCH", f"{TENANTS}/{path}", {"name": "x"}) == (404, "tenant_not_found")
        assert await boss.refused("GET", f"{KEYS}?tenant={path}") == (404, "tenant_not_found")
        assert await boss.refused("POST", KEYS, {"name": "x", "tenant": path}) == (404, "tenant_not_found")
        assert await boss.refused("GET", f"{AUDIT}?tenant={path}") == (404, "tenant_not_found")
    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/revoke", None),
        ("POST", "/rotate", {}),
    ):
        assert await boss.refused(method, f"{KEYS}/{theirs['id']}{tail}", body) == (404, "key_not_found")
    assert await boss.refused("POST", TENANTS, {"name": "x", "namespace": "x"}) == (403, "permission_required")
    entries = (await boss.ok("GET", AUDIT))["data"]
    assert {entry["tenant_id"] for entry in entries} == {own["tenant_id"]}


async def test_the_terms_of_a_tenant_are_the_operators_to_set(app: App, operator: Client) -> None:
    await tenant(operator, "ours")
    _, boss = await key(app, operator, tenant="ours", permissions=["admin:tenants"])
    changes: tuple[dict[str, Any], ...] = (
        {"limits": []},
        {"allowed_models": ["*"]},
        {"priority": "high"},
        {"disabled": True},
    )
    for change in changes:
        assert await boss.refused("PATCH", f"{TENANTS}/ours", change) == (403, "permission_required")
    changed = await boss.ok("PATCH", f"{TENANTS}/ours", {"name": "We", "data_retention": "30 days"})
    assert (changed["name"], changed["data_retention"]) == ("We", "30 days")
    assert await boss.refused("GET", KEYS) == (403, "permission_required")


async def test_nobody_hands_out_or_touches_what_is_above_itself(app: App, operator: Client) -> None:
    high = (await operator.ok("GET", KEYS))["data"][0]
    made, boss = await key(app, operator, permissions=["admin:keys"])
    for permission in ("admin", "admin:tenants", "tenant:impersonate", "usage:read"):
        body = {"name": "x", "permissions": [permission]}
        assert await boss.refused("POST", KEYS, body) == (403, "permission_required")
        body = {"permissions": ["admin:keys", permission]}
        assert await boss.refused("PATCH", f"{KEYS}/{made['id']}", body) == (403, "permission_required")
    for tail in ("rotate", "revoke"):
        assert await boss.refused("POST", f"{KEYS}/{high['id']}/{tail}", {}) == (403, "permission_required")
    assert await boss.refused("PATCH", f"{KEYS}/{high['id']}", {"name": "x"}) == (403, "permission_required")
    _, helper = await key(app, boss, permissions=["admin:keys"])
    await helper.ok("GET", KEYS)


@pytest.mark.parametrize("path", [TENANTS, KEYS, AUDIT])
async def test_without_permission_nothing_is_shown(app: App, path: str) -> None:
    plain = Client(app, (await create_key(app.database, name="plain")).token.reveal())
    assert await plain.refused("GET", path) == (403, "permission_required")
    assert await Client(app, None).refused("GET", path) == (401, "missing_api_key")
    assert await Client(app, "hrt_sk_wrong").refused("GET", path) == (401, "invalid_api_key")


async def test_every_change_and_every_look_across_tenants_is_written_down(app: App, operator: Client) -> None:
    """R-000-89."""
    await tenant(operator, "a")
    made, _ = await key(app, operator, tenant="a")
    await operator.call("PATCH", f"{KEYS}/{made['id']}", {"limits": ["5 usd/day"]}, **{"x-request-id": "mine"})
    await operator.ok("GET", f"{KEYS}/{made['id']}")
    await operator.ok("GET", KEYS)
    await operator.ok("POST", f"{KEYS}/{made['id']}/rotate", {})
    await operator.ok("DELETE", f"{KEYS}/{made['id']}")
    await operator.ok("PATCH", f"{TENANTS}/a", {"priority": "low"})
    await operator.refused("PATCH", f"{TENANTS}/a", {"priority": "lowest"})
    found = (await operator.ok("GET", f"{AUDIT}?tenant=a"))["data"]
    expected = "tenant.change key.revoke key.rotate key.read key.change key.create tenant.create"
    assert [entry["action"] for entry in found] == expected.split()
    change = found[4]
    assert (change["actor_name"], change["target"], change["request_id"]) == ("ops", made["id"], "mine")
    assert change["detail"] == {"limits": ["5 usd/day"]}
    assert change["actor_key_hash"] is not None
    assert "key.list" in await actions(operator)
    assert await actions(operator, action="key.rotate") == ["key.rotate"]


async def test_what_is_done_elsewhere_is_in_the_same_log(app: App, operator: Client) -> None:
    made = await create_key(app.database, name="ci", by=Actor("command line (root)"))
    await revoke_key(app.database, await find_key(app.database, "ci"), Actor("command line (root)"))
    found = (await operator.ok("GET", AUDIT))["data"]
    (entry,) = [one for one in found if one["action"] == "key.revoke"]
    assert (entry["actor_name"], entry["target"]) == ("command line (root)", made.record.key_hash)


BAD_PLACE = base64.urlsafe_b64encode(b'["2026-01-01T00:00:00Z","x"]').decode().rstrip("=")


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", TENANTS, {"name": "x"}, "missing_required_parameter"),
        ("POST", TENANTS, {"name": "x", "namespace": "No Label"}, "invalid_namespace"),
        ("POST", TENANTS, {"name": "x\0", "namespace": "x"}, "invalid_name"),
        ("POST", TENANTS, {"name": "x", "namespace": "default"}, "namespace_taken"),
        ("POST", TENANTS, {"name": "x", "namespace": "x", "limits": ["lots"]}, "invalid_limit"),
        ("POST", TENANTS, {"name": "x", "namespace": "x", "priority": "urgent"}, "invalid_value"),
        ("POST", TENANTS, {"name": "x", "namespace": "x", "data_retention": "for ever"}, "invalid_retention"),
        ("POST", TENANTS, {"name": "x", "namespace": "x", "colour": "red"}, "unknown_parameter"),
        ("PATCH", f"{TENANTS}/default", {"allowed_models": []}, "invalid_models"),
        ("POST", KEYS, {"name": ""}, "invalid_name"),
        ("POST", KEYS, {"name": "x", "allowed_models": ["a\0"]}, "invalid_models"),
        ("POST", KEYS, {"name": "x", "permissions": ["No Good"]}, "invalid_permission"),
        ("POST", KEYS, {"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "invalid_expiry"),
        ("POST", KEYS, {"name": "x", "expires_at": "2120-01-01T00:00:00"}, "invalid_value"),
        ("POST", KEYS, [], "invalid_type"),
        ("GET", f"{KEYS}?limit=0", None, "invalid_value"),
        ("GET", f"{KEYS}?cursor=x", None, "invalid_value"),
        ("GET", f"{TENANTS}?cursor={BAD_PLACE}", None, "invalid_value"),
        ("GET", f"{AUDIT}?cursor=x", None, "invalid_value"),
        ("GET", f"{TENANTS}?namespace=%00", None, "invalid_value"),
        ("GET", f"{KEYS}?colour=red", None, "unknown_parameter"),
    ],
)
async def test_what_cannot_be_done_is_a_400_that_says_why(
    operator: Client, method: str, path: str, body: Any, code: str
) -> None:
    assert await operator.refused(method, path, body) == (400, code)


async def test_a_body_must_be_json_and_small(operator: Client) -> None:
    reply = await operator.call("POST", KEYS, {"name": "x"}, **{"content-type": "text/plain"})
    assert reply.status_code == 415
    assert await operator.refused("POST", KEYS, {"name": "x" * 300_000}) == (413, "request_too_large")


async def test_unknown_addresses_and_methods_are_told_in_the_same_manner(operator: Client) -> None:
    assert await operator.refused("GET", "/api/v1/admin/nothing") == (404, "unknown_url")
    assert await operator.refused("PUT", KEYS) == (405, "method_not_allowed")
    assert await operator.refused("GET", f"{KEYS}/{'0' * 64}") == (404, "key_not_found")
    assert await operator.refused("GET", f"{KEYS}/short") == (404, "key_not_found")
    assert await operator.refused("GET", f"{TENANTS}/{'0' * 32}") == (404, "tenant_not_found")


async def test_the_server_deletes_old_records_in_the_background(app: App) -> None:
    assert "retention" in {task.get_name() for task in asyncio.all_tasks()}
