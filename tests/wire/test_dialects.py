"""How dialects are matched: what passes through, what is translated by way of the chat dialect, and what nobody can say."""

from __future__ import annotations

import pytest

from hortator.errors import Inapplicable
from hortator.wire import dialects
from hortator.wire.chat_stream import ChatStream

ABOUT = dialects.Asked({}, "req_1", 1.0, False)
CHUNK = b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


class Shouting:
    """An encoder for the test: it tells chunks by their number of bytes."""

    def feed(self, payloads: list[bytes]) -> bytes:
        return b"".join(b"%d!" % len(payload) for payload in payloads)

    def end(self) -> bytes:
        return b"end"

    def failed(self, error: Exception) -> bytes:
        return b"failed"


def test_a_provider_is_asked_in_the_clients_dialect_where_it_can() -> None:
    assert dialects.spoken("embeddings", frozenset(("chat", "embeddings"))) == "embeddings"


def test_what_no_translation_reaches_is_refused_as_inapplicable() -> None:
    with pytest.raises(Inapplicable):
        dialects.spoken("moderations", frozenset(("chat",)))


def test_an_encoder_sees_only_chunks_that_obey_the_rules_and_the_reader_knows_the_stream() -> None:
    reader = dialects.Translated(ABOUT, None, Shouting())
    assert reader.feed([CHUNK, b"[DONE]"]) == b"%d!" % len(CHUNK)
    assert reader.committed
    assert reader.done
    assert reader.finished
    assert reader.model == "m"
    assert reader.end() == b"end"


def test_an_error_event_fails_a_translated_stream() -> None:
    reader = dialects.Translated(ABOUT, None, Shouting())
    assert reader.feed([b'{"error":{"message":"no"}}']) == b""
    assert reader.failure is not None


def test_without_an_encoder_the_client_gets_chat_events() -> None:
    class Same:
        def feed(self, payloads: list[bytes]) -> list[bytes]:
            return payloads

    reader = dialects.Translated(ABOUT, Same(), None)
    assert reader.feed([CHUNK]) == ChatStream(False).feed([CHUNK])
