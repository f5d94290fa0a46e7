"""The items of a request as they are kept, a list whatever form the client wrote, and as they are listed; how many tokens they may be.

Called by the responses door for what the archive keeps and for `/v1/responses/input_tokens`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw

from hortator.errors import InvalidRequest
from hortator.wire.body import Object
from hortator.wire.fields import given, is_text, objects, raw

CHARACTERS_A_TOKEN = 4
IMAGE_TOKENS = 750
"""What an image or a file counts for that is sent inside the request: the size of its bytes says nothing of its tokens."""
_ASSISTANT = Raw(b'"assistant"')
_COUNTED = ("input", "instructions", "tools", "text")
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


def input_items(body: Object) -> list[Raw]:
    """Return the items of a request's `input`: a text as a message, and messages with their content as parts. Raises InvalidRequest."""
    asked = given(body, "input")
    if asked is None:
        return []
    if is_text(asked):
        return [raw({"type": "message", "role": "user", "content": [{"type": "input_text", "text": asked}]})]
    return [raw(_item(item)) for item in objects(asked, "input")]


def with_ids(items: Iterable[Object], response_id: str) -> list[Object]:
    """Return a response's input items with the ids they lack, which follow from its own."""
    suffix = response_id.partition("_")[2] or response_id
    found = []
    for place, item in enumerate(items):
        if given(item, "id") is None:
            prefix = _PREFIXES.get(msgspec.json.decode(item["type"]), "item")
            item = {"id": raw(f"{prefix}_{suffix}i{place:02x}"), **{key: item[key] for key in item if key != "id"}}
        found.append(item)
    return found


def _item(item: Object) -> dict[str, Any]:
    """Return an item with its type, and a message's text as a list of parts."""
    found: dict[str, Any] = dict(item)
    named = msgspec.json.decode(item["type"]) if given(item, "type") is not None else None
    kind = named if isinstance(named, str) else "message" if "role" in item else "item_reference"
    found["type"] = kind
    content = given(item, "content")
    if kind == "message" and content is not None and is_text(content):
        own = item.get("role") == _ASSISTANT
        part = (
            {"type": "output_text", "text": content, "annotations": []}
            if own
            else {"type": "input_text", "text": content}
        )
        found["content"] = [part]
    return found


def estimated_tokens(body: Object) -> int:
    """Return about how many tokens a request's input is. Raises InvalidRequest when it is nested too deeply to be walked."""
    try:
        characters = sum(_characters(msgspec.json.decode(body[key])) for key in _COUNTED if key in body)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="too_deep") from None
    return max(1, -(-characters // CHARACTERS_A_TOKEN))


def _characters(value: Any) -> int:
    """Return the characters of all texts in a document; names and structure cost a little, as they do in a prompt."""
    if isinstance(value, str):
        return IMAGE_TOKENS * CHARACTERS_A_TOKEN if value.startswith("data:") else len(value)
    if isinstance(value, dict):
        return sum(len(name) for name in value) + _sum(value.values())
    return _sum(value) if isinstance(value, list) else CHARACTERS_A_TOKEN if value is not None else 0


def _sum(values: Iterable[Any]) -> int:
    return sum(map(_characters, values))
