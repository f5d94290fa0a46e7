"""Events survive however the network cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.errors import InvalidReply
from hortator.wire.sse import MAX_EVENT_BYTES, EventSplitter

STREAM = (
    ": a comment\n\n"
    'data: {"text":"héllo 👋🏽"}\n\n'
    "event: named\ndata: one\ndata: two\n\n"
    "id: 7\nretry: 10\n\n"
    "data:no space\n\n"
    "data: [DONE]\n\n"
).encode()
EVENTS = ['{"text":"héllo 👋🏽"}'.encode(), b"one\ntwo", b"no space", b"[DONE]"]


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    splitter = EventSplitter()
    places = [0, *sorted(cuts), len(stream)]
    found = []
    for start, end in pairwise(places):
        found += splitter.feed(stream[start:end])
    last = splitter.end()
    return [*found, last] if last is not None else found


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_events_survive_a_cut_at_every_byte(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    for cut in range(len(stream)):
        assert split(stream, [cut]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_survive_any_number_of_cuts(cuts: list[int], line_end: bytes) -> None:
    assert split(STREAM.replace(b"\n", line_end), cuts) == EVENTS


def test_a_last_event_without_its_blank_line_is_not_lost() -> None:
    assert split(b"data: one\n\ndata: [DONE]", []) == [b"one", b"[DONE]"]


def test_an_endless_event_is_refused_instead_of_filling_the_memory() -> None:
    splitter = EventSplitter()
    piece = b"x" * (MAX_EVENT_BYTES // 4)
    with pytest.raises(InvalidReply):
        for _ in range(5):
            splitter.feed(piece)
