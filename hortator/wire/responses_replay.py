"""The events of a response that was not streamed while it was made: one in the background, or a kept one that is asked for as a stream.

The same response gives the same events with the same numbers every time, so a client can go on after any of them. Each text comes as one
delta. Called by the responses door. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hortator.wire.responses_stream import named_event

_TEXTS = {
    "output_text": ("output_text", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("reasoning_text", "text"),
    "summary_text": ("reasoning_summary_text", "text"),
}
_CALLS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}
_LAST = {"completed": "completed", "incomplete": "incomplete"}

Json = dict[str, Any]


def events(response: bytes) -> list[bytes]:
    """Return the events of a response as far as it is, in order; an event's place is its number. The last is the end if it is finished."""
    document: Json = msgspec.json.decode(response)
    return [named_event(type, number, body) for number, (type, body) in enumerate(_events(document))]


def _events(document: Json) -> Iterator[tuple[str, Json]]:
    begun = {**document, "output": [], "usage": None, "error": None, "incomplete_details": None}
    begun.pop("completed_at", None)
    yield "response.created", {"response": {**begun, "status": "queued"}}
    if document["status"] == "queued":
        return
    yield "response.in_progress", {"response": {**begun, "status": "in_progress"}}
    if document["status"] == "in_progress":
        return
    for place, item in enumerate(document["output"]):
        yield from _item(place, item)
    yield f"response.{_LAST.get(document['status'], 'failed')}", {"response": document}


def _item(place: int, item: Json) -> Iterator[tuple[str, Json]]:
    """Tell of one output item; one of a kind without texts of its own is only announced and done."""
    where = {"item_id": item.get("id", ""), "output_index": place}
    empty = {**item, **{key: [] for key in ("content", "summary") if item.get(key) is not None}}
    if "status" in item:
        empty["status"] = "in_progress"
    call = _CALLS.get(item["type"])
    if call is not None:
        empty[call[1]] = ""
    yield "response.output_item.added", {"output_index": place, "item": empty}
    for key, index_name in (("summary", "summary_index"), ("content", "content_index")):
        for index, part in enumerate(item.get(key) or ()):
            if part.get("type") in _TEXTS:
                yield from _part({**where, index_name: index}, part)
    if call is not None:
        name, field = call
        said = item[field]
        if said:
            yield f"response.{name}.delta", {**where, "delta": said}
        yield f"response.{name}.done", {**where, field: said}
    yield "response.output_item.done", {"output_index": place, "item": item}


def _part(where: Json, part: Json) -> Iterator[tuple[str, Json]]:
    name, field = _TEXTS[part["type"]]
    framed = "reasoning_summary_part" if part["type"] == "summary_text" else "content_part"
    extra: Json = {"logprobs": part.get("logprobs") or []} if name == "output_text" else {}
    said = part[field]
    yield f"response.{framed}.added", {**where, "part": {**part, field: ""}}
    if said:
        yield f"response.{name}.delta", {**where, "delta": said, **extra}
    yield f"response.{name}.done", {**where, field: said, **extra}
    yield f"response.{framed}.done", {**where, "part": part}
