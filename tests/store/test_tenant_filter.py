"""What belongs to a tenant is reached through `TenantScope` only: in the source, and in what comes back."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import hortator
from hortator.call import KeyHash
from hortator.errors import InvalidRequest, NotFound
from hortator.store import Database
from hortator.store.audit import GATEWAY
from hortator.store.queries import ApiKey, Tenant, TenantScope, add_tenant, match_keys, tenant_by_namespace
from hortator.store.usage import insert_usage
from tests.store.test_usage import row

PACKAGE = Path(hortator.__file__).parent
OWNED = {
    "api_keys",
    "audit",
    "batch_lines",
    "batches",
    "files",
    "key_rollups",
    "responses",
    "routing_outcomes",
    "task_events",
    "task_files",
    "task_steps",
    "tasks",
    "usage_events",
    "usage_rollups",
    "webhook_deliveries",
    "webhook_secrets",
    "webhooks",
}
WITHOUT_TENANT = {
    "find_keys": "asks whose a key is",
    "match_keys": "the operator's search",
    "touch_keys": "batched uses",
    "keep_all": "batched responses, each with its tenant",
    "idle_work": "work for whoever has a slot",
    "take_work": "the same",
    "forget_before": "what is too old, whoever's it is",
    "_kept": "a row",
    "leftovers": "what is to be deleted, whoever's it is",
    "_counted": "part of a change of the holder's",
    "_idle": "work for whoever has room",
    "idle_batches": "the same",
    "hold": "the same",
    "numbered": "part of a change of the scope's",
    "find_work": "work for whoever has it to do",
    "_any_task": "the same",
    "unfinished_roots": "the same",
    "states": "tasks that somebody shows or waits for, found by their tenant before",
    "cancelled_since": "work for whoever has it to do",
    "forget_trees": "what is too old, whoever's it is",
    "find_webhook": "work for whoever the engine lets do it",
}
SCOPES = (
    ("queries.py", "TenantRows"),
    ("queries.py", "TenantScope"),
    ("responses.py", "ResponseScope"),
    ("files.py", "FileScope"),
    ("batches.py", "BatchScope"),
    ("batches.py", "HeldBatch"),
    ("task_events.py", "EventScope"),
    ("task_steps.py", "StepScope"),
    ("task_files.py", "TaskFileScope"),
    ("tasks.py", "TaskScope"),
    ("webhooks.py", "WebhookScope"),
)
HELPERS = {"__init__", "_where", "_rows", "_seen", "_held"}
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def imports_owned_table(node: ast.AST) -> bool:
    if not isinstance(node, ast.ImportFrom):
        return False
    names = {alias.name for alias in node.names}
    return (node.module == "hortator.store.tables" and bool(names & OWNED)) or (
        node.module == "hortator.store" and "tables" in names
    )


def is_sql_on_owned_table(node: ast.AST) -> bool:
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return any(f"{verb} {table}" in text for verb in ("FROM", "INTO", "UPDATE", "JOIN") for table in OWNED)


def is_owned_table(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in OWNED


def test_no_other_file_touches_a_tenants_table() -> None:
    allowed = {
        "store/tables.py",
        "store/queries.py",
        "store/audit.py",
        "store/batches.py",
        "store/files.py",
        "store/outcomes.py",
        "store/pages.py",
        "store/reports.py",
        "store/responses.py",
        "store/retention.py",
        "store/rollups.py",
        "store/task_events.py",
        "store/task_files.py",
        "store/task_steps.py",
        "store/tasks.py",
        "store/usage.py",
        "store/webhooks.py",
        "store/migrations/versions/0001_first_tables.py",
        "store/migrations/versions/0002_usage_rollups.py",
        "store/migrations/versions/0004_key_rollups.py",
        "store/migrations/versions/0005_task_type.py",
        "store/migrations/versions/0007_responses.py",
    }
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in allowed:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                assert not imports_owned_table(node), f"{name} must go through TenantScope"
                assert not is_sql_on_owned_table(node), f"{name} must go through TenantScope"


def test_the_usage_file_only_inserts() -> None:
    source = (PACKAGE / "store" / "usage.py").read_text("utf-8")
    for verb in ("UPDATE ", "DELETE ", "FROM usage_events", "select("):
        assert verb not in source


@pytest.mark.parametrize("file", ["pages.py", "reports.py"])
def test_what_is_listed_starts_from_a_scope(file: str) -> None:
    """No statement of their own making; the scope adds the filter, or is the operator's and says so."""
    tree = ast.parse((PACKAGE / "store" / file).read_text("utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert called & {"select", "text", "insert", "update", "delete"} == set()


def test_only_reports_administration_and_retention_may_see_every_tenant() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "OperatorScope" in path.read_text("utf-8")
    }
    assert users == {
        "store/queries.py",
        "store/outcomes.py",
        "store/pages.py",
        "store/reports.py",
        "ledger/reports.py",
        "store/retention.py",
        "tenancy/administration.py",
        "tenancy/retention.py",
        "tenancy/spending.py",
    }


def test_every_query_on_a_tenants_table_is_in_the_scope() -> None:
    for file in {file for file, _ in SCOPES}:
        for node in ast.parse((PACKAGE / "store" / file).read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in WITHOUT_TENANT:
                assert not any(map(is_owned_table, ast.walk(node))), f"{node.name} has no tenant"


@pytest.mark.parametrize(("file", "name"), SCOPES)
def test_every_statement_of_the_scope_has_the_filter(file: str, name: str) -> None:
    """A select starts from `_rows`, an update or a delete names `_where`; inserts carry the scope's own tenant."""
    tree = ast.parse((PACKAGE / "store" / file).read_text("utf-8"))
    (scope,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for method in scope.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) or method.name in HELPERS:
            continue
        source = ast.unparse(method)
        calls = {
            node.func.id for node in ast.walk(method) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "select" not in calls, method.name
        assert len(re.findall(r"\b(?:update|delete)\(", source)) == source.count("self._where("), method.name
        assert source.count("insert(") <= source.count("'tenant_id': self.tenant_id"), method.name


def key(tenant: Tenant, digit: str, name: str = "ci") -> ApiKey:
    return ApiKey(
        key_hash=KeyHash(digit * 64),
        tenant_id=tenant.id,
        name=name,
        prefix=f"hrt_sk_{digit * 5}",
        permissions=("usage:read",),
        allowed_models=("groq/*",),
        created_at=NOW,
        last_used_at=None,
        expires_at=NOW + timedelta(days=1),
        revoked_at=None,
        replaced_by=None,
    )


@pytest.fixture
async def two(database: Database) -> tuple[TenantScope, TenantScope, ApiKey, ApiKey]:
    ours, theirs = await add_tenant(database, "A", "a", NOW), await add_tenant(database, "B", "b", NOW)
    scopes = TenantScope(database, ours.id), TenantScope(database, theirs.id)
    keys = key(ours, "1"), key(theirs, "2")
    for scope, each in zip(scopes, keys, strict=True):
        await scope.add_key(each, GATEWAY)
    return *scopes, *keys


Two = tuple[TenantScope, TenantScope, ApiKey, ApiKey]


async def test_a_scope_reads_its_own_tenants_keys_only(two: Two) -> None:
    ours, theirs, our_key, their_key = two
    assert await ours.keys() == [our_key]
    assert await theirs.keys() == [their_key]


async def test_a_scope_cannot_revoke_or_replace_another_tenants_key(two: Two) -> None:
    ours, theirs, our_key, their_key = two
    await ours.revoke_key(their_key.key_hash, NOW, GATEWAY)
    replacement = key(Tenant(ours.tenant_id, "A", "a", NOW), "3")
    with pytest.raises(InvalidRequest):
        await ours.replace_key(their_key.key_hash, replacement, NOW, GATEWAY)
    assert await theirs.keys() == [their_key]
    assert await ours.keys() == [our_key]


async def test_a_key_is_stored_under_the_scopes_tenant_whatever_it_says(two: Two) -> None:
    ours, theirs, _, their_key = two
    await ours.add_key(key(Tenant(their_key.tenant_id, "B", "b", NOW), "4"), GATEWAY)
    assert len(await ours.keys()) == 2
    assert len(await theirs.keys()) == 1


async def test_a_scope_sums_its_own_tenants_usage_only(database: Database, two: Two) -> None:
    ours, theirs, _, _ = two
    mine = {
        "tenant_id": ours.tenant_id.replace("-", ""),
        "model_served": "m",
        "timestamp": "2026-11-21 11:00:00.000000",
    }
    rows = [
        row(1, **mine, input_tokens=1, output_tokens=2, cost=1),
        row(2, **mine, input_tokens=3, output_tokens=4, cost=2),
        row(3, **mine),
        row(4, **{**mine, "tenant_id": theirs.tenant_id.replace("-", "")}, cost=10**10),
    ]
    await insert_usage(database, rows)
    day = NOW - timedelta(days=1), NOW + timedelta(days=1)
    (total,) = await ours.usage_totals(*day)
    assert (total.model, total.requests, total.input_tokens, total.output_tokens, total.unpriced) == ("m", 3, 4, 6, 1)
    assert str(total.cost) == "3E-10"
    assert {record["request_id"] for record in await ours.usage(*day)} == {"req_1", "req_2", "req_3"}
    assert len(await ours.usage(*day, limit=2)) == 2
    assert await ours.usage_totals(NOW, day[1]) == []


async def test_a_search_for_keys_takes_no_wildcards(database: Database, two: Two) -> None:
    for text in ("%", "_", "hrt%", "hrt\\_sk"):
        assert await match_keys(database, text) == []
    assert len(await match_keys(database, "hrt_sk_")) == 2
    assert len(await match_keys(database, "ci")) == 2
    assert await match_keys(database, "2" * 20) == [two[3]]


async def test_a_namespace_belongs_to_one_tenant(database: Database) -> None:
    first = await add_tenant(database, "A", "a", NOW)
    with pytest.raises(InvalidRequest) as caught:
        await add_tenant(database, "Other", "a", NOW)
    assert caught.value.code == "namespace_taken"
    assert await tenant_by_namespace(database, "a") == first
    with pytest.raises(NotFound):
        await tenant_by_namespace(database, "b")
