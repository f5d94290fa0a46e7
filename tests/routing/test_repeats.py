"""A client that asks again is noticed, by the words or the session; what is remembered is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from hortator.call import Call, Caller, Decision, KeyHash, ModelId, Repeat, RequestId, TenantId
from hortator.routing import Repeats, decide, repeats
from tests.routing.test_auto import FREE, PROVIDERS, Router

CALLER = Caller(tenant_id=TenantId("t"), key_hash=KeyHash("k"), key_name="k")
WEAK, STRONG = "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast", "openai/gpt-4o"


class Client:
    """Asks one catalogue, and notes how it ended."""

    def __init__(self, tmp_path: Path) -> None:
        self.router = Router(tmp_path, PROVIDERS + FREE)
        self.repeats = Repeats()
        self.asked = 0
        self.now = 1_000.0

    def ask(
        self, text: str, model: str = "auto", session: bytes | None = None, caller: Caller = CALLER, **body: Any
    ) -> tuple[Decision, Repeat | None]:
        self.asked += 1
        content = {"messages": [{"role": "user", "content": text}], **body}
        call = Call(
            id=RequestId(f"r{self.asked}"),
            operation="chat",
            model=ModelId(model),
            body={name: Raw(msgspec.json.encode(value)) for name, value in content.items()},
            stream=False,
            wants_usage=False,
            started=self.now,
            received_at=self.now,
            session=session,
        )
        decision = decide(call, caller, self.router.catalogue, self.router.rules)
        routed, repeat = self.repeats.note(call, caller, decision, self.router.catalogue, self.now)
        assert (routed is not None) == (model == "auto")
        return decision, repeat


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def test_the_same_words_again_are_a_retry(client: Client) -> None:
    decision, first = client.ask("hello")
    assert (decision.model, first) == (WEAK, None)
    assert client.ask("hello")[1] == Repeat(request_id=RequestId("r1"), escalated=False)
    assert client.ask("hello")[1] == Repeat(request_id=RequestId("r2"), escalated=False), "the last one is meant"
    assert client.ask("good morning")[1] is None


def test_the_same_words_to_a_stronger_model_are_an_escalation(client: Client) -> None:
    client.ask("hello")
    assert client.ask("hello", STRONG)[1] == Repeat(request_id=RequestId("r1"), escalated=True)
    assert client.ask("hello", WEAK)[1] == Repeat(request_id=RequestId("r1"), escalated=False)


@pytest.mark.parametrize("named", [{"session": b"s"}, {"prompt_cache_key": "s"}])
def test_a_session_that_goes_on_is_no_repetition_until_it_names_a_stronger_model(
    client: Client, named: dict[str, Any]
) -> None:
    client.ask("hello", **named)
    assert client.ask("what is the capital of France?", **named)[1] is None
    assert client.ask("no, really", WEAK, **named)[1] is None
    assert client.ask("no, really", STRONG, **named)[1] == Repeat(request_id=RequestId("r2"), escalated=True)
    assert client.ask("hello")[1] is None, "another session"


def test_after_ten_minutes_nothing_is_a_repetition(client: Client) -> None:
    client.ask("hello", session=b"s")
    client.now += repeats.SECONDS + 1
    assert client.ask("hello", STRONG, session=b"s")[1] is None
    assert client.ask("hello", session=b"s")[1] is None


def test_tenants_do_not_repeat_each_other(client: Client) -> None:
    client.ask("hello", session=b"s")
    other = Caller(tenant_id=TenantId("u"), key_hash=KeyHash("k"), key_name="k")
    assert client.ask("hello", STRONG, session=b"s", caller=other)[1] is None


def test_a_long_conversation_is_known_by_its_length_and_its_end(client: Client) -> None:
    client.ask("a" * 5_000 + " thanks")
    assert client.ask("b" * 5_001 + " thanks")[1] is None
    assert client.ask("a" * 5_000 + " thanks")[1] is not None


def test_what_is_remembered_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_ASKED", 10)
    for number in range(30):
        client.ask(f"hello {number}", session=b"%d" % number)
    assert len(client.repeats) == 10
    assert client.ask("hello 0", session=b"0")[1] is None
    assert client.ask("hello 29", session=b"29")[1] is not None
