"""The log of a tree reaches the `callback_url`: in order, signed, again until it arrives, whatever dies in between."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hortator.call import Caller, KeyHash, TenantId
from hortator.errors import ConnectFailed, InvalidRequest, NotFound, RateLimited
from hortator.orchestration import webhooks
from hortator.orchestration.webhooks import Client, Webhooks
from hortator.providers.guarded import Guarded
from hortator.settings import Webhooks as Settings
from hortator.store import Database
from hortator.store.audit import GATEWAY
from hortator.store.queries import add_tenant
from hortator.store.webhooks import WebhookScope
from tests.databases import database, database_url
from tests.eventually import eventually
from tests.orchestration.memory_engine import MemoryEngine
from tests.orchestration.receiver import Got, Log, Receiver, add_root

__all__ = ["database", "database_url"]

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "webhooks.md"
URL = "https://example.com/hook?of=ours"
AT_ONCE = (0.0,)
NEVER = (36_000.0,)


def signed(call: Got, secret: str) -> bool:
    """Verify a call as the Standard Webhooks scheme says, with nothing of the product."""
    key = base64.b64decode(secret[len("whsec_") :])
    content = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.body
    wanted = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    given = [each.partition(",") for each in call.headers["webhook-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(value, wanted) for version, _, value in given)


class Room:
    """Webhooks over a store, with everything around them made up."""

    def __init__(self, database: Database, tenant_id: TenantId) -> None:
        self.database = database
        self.caller = Caller(tenant_id=tenant_id, key_hash=KeyHash("1" * 64), key_name="ci")
        self.log = Log()
        self.receiver = Receiver()
        self.client: Client = self.receiver
        self.engine = MemoryEngine()
        self.scope = WebhookScope(database, tenant_id)
        self.webhooks: Webhooks

    async def start(self, pauses: tuple[float, ...] = AT_ONCE, hours: float = 28, unfinished: int = 100) -> None:
        """Start, or start again as another process that finds the same store."""
        self.webhooks = Webhooks(
            self.database,
            self.engine,
            self.log.follow,
            self.client,
            Settings(give_up_hours=hours),
            unfinished=unfinished,
            pauses=pauses,
        )
        await self.engine.start(self.webhooks.handlers)

    async def begin(self, events: list[str] | None = None, url: str = URL) -> str:
        """Begin the webhook of a new tree."""
        root_id = await add_root(self.database, self.caller.tenant_id)
        await self.webhooks.check(self.caller, url, events)
        await self.webhooks.begin(self.caller.tenant_id, root_id, url, events)
        return root_id

    async def over(self, root_id: str) -> None:
        """Wait until everything of a tree is sent."""
        await eventually(lambda: self.engine.work[webhooks.KIND, root_id].finished)

    async def listed(self, root_id: str) -> list[Any]:
        """Its deliveries as clients see them."""
        return msgspec.to_builtins(await self.webhooks.page(self.caller, root_id))  # type: ignore[no-any-return]

    def seqs(self) -> list[int]:
        """Which events were told of, try by try."""
        return [call.seq for call in self.receiver.calls]


@pytest.fixture
async def room(database: Database) -> AsyncIterator[Room]:
    tenant = await add_tenant(database, "A", "a", datetime.now(UTC))
    made = Room(database, tenant.id)
    yield made
    await made.engine.stop()


@pytest.fixture
async def stranger(database: Database) -> Caller:
    tenant = await add_tenant(database, "B", "b", datetime.now(UTC))
    return Caller(tenant_id=tenant.id, key_hash=KeyHash("2" * 64), key_name="other")


async def test_progress_and_the_end_are_told_in_order(room: Room) -> None:
    """R-000-57, R-000-58: `event_type`, `task_id`, `progress_percent`, `results` with a summary; the event itself as every view has it."""
    await room.start()
    root = await room.begin()
    await room.log.tell(root, "task_created")
    await room.log.tell(root, "progress", details={"progress_percent": 40})
    await room.log.tell(root, "model_call", details={"deployment": "one/scripted"})
    part = await room.log.tell(root, "partial_result", content="half", agent_id=root)
    end = await room.log.tell(root, "completed", result={"summary": "All is well.", "content": "..."})
    await room.over(root)
    told = [call.json for call in room.receiver.calls]
    assert [each["event_type"] for each in told] == ["task_progress", "task_progress", "task_completed"]
    assert [each["progress_percent"] for each in told] == [40, 40, 100]
    assert [each["status"] for each in told] == ["Running", "Running", "Completed"]
    assert {each["task_id"] for each in told} == {root}
    assert told[1]["event"] == msgspec.to_builtins(part)
    assert "results" not in told[1]
    assert told[2]["results"]["summary"] == "All is well."
    assert told[2]["timestamp"] == end.timestamp
    assert {call.url for call in room.receiver.calls} == {URL}
    assert {call.headers["content-type"] for call in room.receiver.calls} == {"application/json"}


@pytest.mark.parametrize(
    ("type", "phase"),
    [
        ("failed", "Failed"),
        ("cancelled", "Cancelled"),
        ("budget_exceeded", "BudgetExceeded"),
        ("timed_out", "TimedOut"),
    ],
)
async def test_every_other_end_is_a_failure_that_says_which_and_what_was_achieved(
    room: Room, type: str, phase: str
) -> None:
    await room.start()
    root = await room.begin()
    await room.log.tell(root, "progress", details={"progress_percent": 70})
    await room.log.tell(root, type, details={"code": "x", "result": {"summary": "Some."}})
    await room.over(root)
    last = room.receiver.calls[-1].json
    assert (last["event_type"], last["status"], last["progress_percent"]) == ("task_failed", phase, 70)
    assert last["results"] == {"summary": "Some."}


@pytest.mark.parametrize(
    ("events", "seqs"),
    [(["*"], [1, 2, 3, 4]), (["agent_message"], [2]), (["task_completed", "task_created"], [1, 4]), ([], [])],
)
async def test_an_order_chooses_what_is_told(room: Room, events: list[str], seqs: list[int]) -> None:
    await room.start()
    root = await room.begin(events)
    for type in ("task_created", "agent_message", "progress", "completed"):
        await room.log.tell(root, type)
    await room.over(root)
    assert room.seqs() == seqs


async def test_calls_are_signed_by_the_standard_scheme(room: Room) -> None:
    await room.start()
    secret = (await room.webhooks.secret(room.caller)).secret
    assert secret.startswith("whsec_")
    assert 24 <= len(base64.b64decode(secret[6:])) <= 64
    root = await room.begin()
    await room.log.tell(root, "completed", result={"summary": "é"})
    await room.over(root)
    [call] = room.receiver.calls
    assert signed(call, secret)
    assert not signed(call._replace(body=call.body + b" "), secret)
    assert not signed(call, "whsec_" + base64.b64encode(b"x" * 32).decode())
    assert abs(int(call.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60


async def test_the_guides_snippet_verifies_a_call(room: Room) -> None:
    await room.start()
    root = await room.begin()
    await room.log.tell(root, "completed")
    await room.over(root)
    [call] = room.receiver.calls
    [snippet] = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    secret = (await room.webhooks.rotate(room.caller, GATEWAY)).secret
    await room.webhooks.redeliver(room.caller, root, call.headers["webhook-id"])
    assert names["verified"](secret, room.receiver.calls[1].headers, call.body)
    assert not names["verified"](secret, call.headers, call.body)
    assert not names["verified"](secret, {**room.receiver.calls[1].headers, "webhook-timestamp": "1"}, call.body)


async def test_after_a_rotation_both_secrets_sign_for_a_day(room: Room) -> None:
    await room.start()
    before = await room.webhooks.secret(room.caller)
    after = await room.webhooks.rotate(room.caller, GATEWAY)
    assert after.secret != before.secret
    assert after.secret == (await room.webhooks.secret(room.caller)).secret
    [until] = after.previous
    assert timedelta(hours=23) < datetime.fromisoformat(until) - datetime.now(UTC) < timedelta(hours=25)
    root = await room.begin()
    await room.log.tell(root, "completed")
    await room.over(root)
    [call] = room.receiver.calls
    assert signed(call, before.secret)
    assert signed(call, after.secret)


async def test_what_does_not_arrive_is_sent_again_with_the_same_id_and_body(room: Room) -> None:
    """R-000-59. Anything but 2xx is a failure, a redirect too."""
    room.receiver.plan.extend([500, 302, ConnectFailed("no connection"), 204])
    await room.start()
    secret = (await room.webhooks.secret(room.caller)).secret
    root = await room.begin()
    await room.log.tell(root, "completed")
    await room.over(root)
    assert len(room.receiver.calls) == 4
    assert len({call.headers["webhook-id"] for call in room.receiver.calls}) == 1
    assert len({call.body for call in room.receiver.calls}) == 1
    assert all(signed(call, secret) for call in room.receiver.calls)
    [delivery] = await room.listed(root)
    assert delivery["id"] == room.receiver.calls[0].headers["webhook-id"]
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("delivered", 4, 204)
    assert delivery["delivered_at"] is not None
    assert delivery["next_attempt_at"] is None


async def test_later_events_wait_for_earlier_ones(room: Room) -> None:
    room.receiver.plan.extend([500, 500])
    await room.start()
    root = await room.begin(["*"])
    for type in ("task_created", "progress", "completed"):
        await room.log.tell(root, type)
    await room.over(root)
    assert room.seqs() == [1, 1, 1, 2, 3]


async def test_a_restart_goes_on_at_the_same_try(room: Room) -> None:
    room.receiver.plan.extend([200, 500])
    await room.start(NEVER)
    root = await room.begin(["*"])
    await room.log.tell(root, "task_created")
    await room.log.tell(root, "progress")
    await eventually(lambda: _attempts(room, root, [1, 1]))
    [_, before] = await room.listed(root)
    await room.engine.crash()
    await room.log.tell(root, "completed")
    await room.start(NEVER)
    assert (await room.listed(root))[1] == before
    await room.webhooks.redeliver(room.caller, root, before["id"])
    await room.over(root)
    assert [each["attempts"] for each in await room.listed(root)] == [1, 2, 1]
    assert room.seqs() == [1, 2, 2, 3]


async def test_a_killed_process_loses_no_call(room: Room) -> None:
    """What was being sent when it died is sent again with the same id; what came before is not."""
    hangs = asyncio.Event()
    room.receiver.plan.extend([200, hangs])
    await room.start()
    root = await room.begin(["*"])
    await room.log.tell(root, "task_created")
    await room.log.tell(root, "progress")
    await eventually(lambda: room.seqs() == [1, 2])
    await room.engine.crash()
    await room.log.tell(root, "completed")
    await room.start()
    await room.over(root)
    assert room.seqs() == [1, 2, 2, 3]
    [_, first, again, _] = room.receiver.calls
    assert (first.headers["webhook-id"], first.body) == (again.headers["webhook-id"], again.body)
    assert [each["status"] for each in await room.listed(root)] == ["delivered"] * 3


async def test_a_log_that_is_not_shown_any_more_has_not_ended(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "STORE_SECONDS", 0.01)
    await room.start()
    root = await room.begin()
    await room.log.tell(root, "progress")
    await eventually(lambda: room.seqs() == [1])
    await room.log.shut()
    await room.log.tell(root, "completed")
    await room.over(root)
    assert room.seqs() == [1, 2]


async def test_late_progress_is_given_up_soon_and_holds_up_no_end(room: Room) -> None:
    room.receiver.plan.extend([500] * 5)
    await room.start()
    root = await room.begin(["*"])
    for type in ("task_created", "progress", "progress", "completed"):
        await room.log.tell(root, type)
    await room.over(root)
    assert room.seqs() == [1, 1, 1, 1, 2, 3, 4]
    assert [each["status"] for each in await room.listed(root)] == ["failed", "failed", "delivered", "delivered"]


async def test_an_end_is_given_up_after_so_many_hours(room: Room) -> None:
    room.receiver.usual = 500
    await room.start((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7_200.0), hours=1)
    root = await room.begin()
    await room.log.tell(root, "completed")
    await room.over(root)
    assert len(room.receiver.calls) == 7
    [delivery] = await room.listed(root)
    assert (delivery["status"], delivery["attempts"], delivery["last_error"]) == ("failed", 7, "upstream_error")


async def test_a_receiver_that_is_gone_is_left_alone(room: Room) -> None:
    room.receiver.plan.append(410)
    await room.start()
    root = await room.begin()
    await room.log.tell(root, "progress")
    await room.over(root)
    await room.log.tell(root, "completed")
    assert room.seqs() == [1]
    [delivery] = await room.listed(root)
    assert (delivery["status"], delivery["last_status"]) == ("failed", 410)


async def test_an_address_is_judged_at_every_try(room: Room) -> None:
    refusal = InvalidRequest("The host is not a public one.", code="url_not_allowed")
    room.receiver.plan.extend([refusal, 200])
    await room.start(NEVER)
    root = await room.begin()
    await room.log.tell(root, "completed")
    await eventually(lambda: _attempts(room, root, [1]))
    [delivery] = await room.listed(root)
    assert (delivery["status"], delivery["last_status"], delivery["last_error"]) == ("pending", None, "url_not_allowed")


async def test_what_cannot_be_called_is_refused_with_the_order(room: Room) -> None:
    await room.start(unfinished=1)
    with pytest.raises(InvalidRequest) as unknown:
        await room.webhooks.check(room.caller, URL, ["progress", "sunrise"])
    assert (unknown.value.code, unknown.value.param) == ("invalid_value", "callback_events[1]")
    with pytest.raises(InvalidRequest):
        await room.webhooks.check(room.caller, URL, ["*"] * 100)
    await room.begin()
    with pytest.raises(RateLimited) as many:
        await room.webhooks.check(room.caller, URL, None)
    assert many.value.code == "too_many_tasks"
    room.receiver.refuses = InvalidRequest("no", code="url_not_allowed", param="callback_url")
    with pytest.raises(InvalidRequest) as inside:
        await room.webhooks.check(room.caller, "http://169.254.169.254/", None)
    assert inside.value.code == "url_not_allowed"


async def test_a_client_has_a_call_made_again_and_what_waited_goes_on(room: Room) -> None:
    room.receiver.plan.extend([500, 503])
    await room.start(NEVER)
    root = await room.begin(["*"])
    await room.log.tell(root, "task_created")
    await eventually(lambda: _attempts(room, root, [1]))
    [delivery] = await room.listed(root)
    failed = await room.webhooks.redeliver(room.caller, root, delivery["id"])
    assert (failed.status, failed.attempts, failed.last_status) == ("pending", 2, 503)
    assert failed.next_attempt_at == delivery["next_attempt_at"]
    done = await room.webhooks.redeliver(room.caller, root, delivery["id"])
    assert (done.status, done.attempts, done.last_status, done.last_error) == ("delivered", 3, 200, None)
    await room.log.tell(root, "completed")
    await room.over(root)
    assert room.seqs() == [1, 1, 1, 2]
    [first, *others] = room.receiver.calls[:3]
    assert all((each.body, each.headers["webhook-id"]) == (first.body, delivery["id"]) for each in others)
    again = await room.webhooks.redeliver(room.caller, root, delivery["id"])
    assert (again.status, again.attempts) == ("delivered", 4)


async def test_another_tenants_deliveries_cannot_be_seen(room: Room, stranger: Caller) -> None:
    await room.start()
    root = await room.begin()
    await room.log.tell(root, "completed")
    await room.over(root)
    [delivery] = await room.listed(root)

    async def refused(asked: Awaitable[object]) -> str:
        with pytest.raises(NotFound) as caught:
            await asked
        return caught.value.code

    assert await refused(room.webhooks.page(stranger, root)) == "task_not_found"
    assert await refused(room.webhooks.redeliver(stranger, root, delivery["id"])) == "task_not_found"
    assert await refused(room.webhooks.page(room.caller, "nothing\0")) == "task_not_found"
    assert await refused(room.webhooks.redeliver(room.caller, root, "msg_\0")) == "delivery_not_found"
    assert await refused(room.webhooks.redeliver(room.caller, root, "msg_" + "0" * 32)) == "delivery_not_found"
    mine, theirs = await room.webhooks.secret(room.caller), await room.webhooks.secret(stranger)
    assert mine.secret != theirs.secret


async def test_a_slow_receiver_of_one_tenant_takes_a_few_places_only(room: Room) -> None:
    done = asyncio.Event()
    room.receiver.plan.extend([done] * 20)
    await room.start()
    roots = [await room.begin() for _ in range(12)]
    for root in roots:
        await room.log.tell(root, "completed")
    await eventually(lambda: room.receiver.running == webhooks.AT_ONCE_OF_TENANT)
    done.set()
    for root in roots:
        await room.over(root)
    assert room.receiver.most == webhooks.AT_ONCE_OF_TENANT


async def test_calls_go_out_over_http_and_inside_only_where_that_is_allowed(room: Room) -> None:
    heads: list[bytes] = []
    bodies: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        length = int(heads[-1].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        bodies.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    room.client = Guarded(allow_hosts=[f"127.0.0.1:{port}"])
    await room.start()
    for inside in (f"http://127.0.0.1:{port + 1}/", "http://169.254.169.254/", "file:///etc/passwd"):
        with pytest.raises(InvalidRequest):
            await room.webhooks.check(room.caller, inside, None)
    root = await room.begin(url=f"http://127.0.0.1:{port}/hook?a=b")
    await room.log.tell(root, "completed", result={"summary": "Done."})
    await room.over(root)
    server.close()
    [head], [body] = heads, bodies
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:-2]]
    call = Got("", {name.lower(): value for name, _, value in lines}, body)
    assert signed(call, (await room.webhooks.secret(room.caller)).secret)
    [delivery] = await room.listed(root)
    assert (delivery["status"], delivery["last_status"]) == ("delivered", 204)


async def test_a_webhook_begun_twice_is_sent_once(room: Room) -> None:
    """Whoever takes an order may die after any step and do it again."""
    await room.start()
    root = await room.begin()
    await room.webhooks.begin(room.caller.tenant_id, root, URL, None)
    await room.log.tell(root, "completed")
    await room.over(root)
    await room.webhooks.begin(room.caller.tenant_id, root, URL, None)
    assert room.seqs() == [1]


def _attempts(room: Room, root: str, wanted: list[int]) -> Awaitable[bool]:
    async def look() -> bool:
        return [each["attempts"] for each in await room.listed(root)] == wanted

    return look()
