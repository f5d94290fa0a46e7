"""A chat with a team of agents: what its requests say besides chat's own fields, and how its answer is said in chat's.

`api/team_chat.py` reads requests with it, `api/team_stream.py` makes chunks with it. Field names are the specification's (R-000-14, R-000-27,
R-000-46) and the origin project's (`x_tier`, ...). Rules of chunks: every chunk has one choice, but for the usage chunk; no nulls in a delta; what a
tree does is never said as content (C-18, C-19). Pure.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from hortator.errors import InvalidRequest
from hortator.wire.body import Object, parse_as
from hortator.wire.events import Event
from hortator.wire.fields import given
from hortator.wire.orders import BINARY_TYPE, Attachment, file_path
from hortator.wire.tasks import Budget, Capability, TaskConfig, Tier, config, seconds

Mode = Literal["auto", "fast", "standard", "complex"]
FinishReason = Literal["stop", "length"]
MOST_FILES = 200

_ENCODED = re.compile(r"data:[^,]{0,200};base64,")
_LIMITS = ("max_completion_tokens", "max_tokens")
_number = msgspec.json.Decoder(int | None)
_temperature = msgspec.json.Decoder(float | None)
_encode = msgspec.json.encode


class _Ours(Struct, frozen=True):
    """The fields of a request that are for the gateway."""

    hortator_mode: Mode | None = None
    hortator_config: dict[str, Any] | None = None
    hortator_reasoning: bool | None = None
    x_tier: Tier | None = None
    x_capabilities: tuple[Capability, ...] | None = None
    x_budget: Budget | None = None
    x_no_cache: bool | None = None


_ours = msgspec.json.Decoder(_Ours)


class Wanted(NamedTuple):
    """What a request says to the team."""

    mode: Mode
    config: TaskConfig
    arguments: Mapping[str, Any]
    """Of a pattern."""
    reasoning: bool
    """Its client wants to see what agents do, as `reasoning_content`."""


def take(body: Object, arguments: Sequence[str] = ()) -> Wanted:
    """Return what a request says to the team, and take it out of `body`. Raises InvalidRequest.

    `arguments`: names in `hortator_config` that are the pattern's.
    """
    picked = {name: body.pop(name) for name in _Ours.__struct_fields__ if name in body}
    _, ours = parse_as(_encode(picked), _ours)
    said = dict(ours.hortator_config or {})
    own = {name: said.pop(name) for name in arguments if name in said}
    chosen = config(said, "hortator_config")
    if chosen.timeout is not None:
        chosen = replace(chosen, timeout=seconds(chosen.timeout, "hortator_config.timeout"))
    if ours.x_tier is not None:
        chosen = replace(chosen, tier=ours.x_tier)
    if ours.x_capabilities is not None:
        chosen = replace(chosen, capabilities=ours.x_capabilities)
    if ours.x_budget is not None:
        chosen = replace(chosen, budget=ours.x_budget)
    return Wanted(ours.hortator_mode or "auto", chosen, own, bool(ours.hortator_reasoning))


def limits(body: Object) -> tuple[int | None, float | None]:
    """Return the longest answer and the temperature that a chat request asks for; None = it does not say."""
    longest = next((_number.decode(value) for name in _LIMITS if (value := given(body, name)) is not None), None)
    temperature = given(body, "temperature")
    return longest, None if temperature is None else _temperature.decode(temperature)


def conversation(messages: Raw) -> tuple[list[dict[str, Any]], list[Attachment]]:
    """Return a request's messages without the files in them, and those files. Raises InvalidRequest.

    Each file leaves a line of text in its place that tells its name.
    """
    found: list[Attachment] = []
    decoded: list[dict[str, Any]] = msgspec.json.decode(messages)
    for place, message in enumerate(decoded):
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [
                _without_file(part, f"messages[{place}].content[{index}]", found) for index, part in enumerate(content)
            ]
    return decoded, found


def _without_file(part: Any, param: str, found: list[Attachment]) -> Any:
    if not isinstance(part, dict) or part.get("type") != "file":
        return part
    file = part.get("file")
    data = file.get("file_data") if isinstance(file, dict) else None
    if not isinstance(file, dict) or not isinstance(data, str):
        raise InvalidRequest(
            f"'{param}' has no `file.file_data`: agents are given files inside the request.",
            code="unsupported_content",
            param=param,
        )
    if len(found) >= MOST_FILES:
        raise InvalidRequest(f"More than {MOST_FILES} files.", code="invalid_value", param=param)
    media = BINARY_TYPE
    prefix = _ENCODED.match(data)
    if prefix is not None:
        media = data[5 : prefix.end() - 8].partition(";")[0] or media
        data = data[prefix.end() :]
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        where = f"{param}.file.file_data"
        raise InvalidRequest(f"'{where}' is not base64.", code="invalid_value", param=where) from None
    name = file.get("filename")
    path = file_path(name if isinstance(name, str) and name else f"file-{len(found) + 1}", f"{param}.file.filename")
    if any(path == one.path for one in found):
        path = f"{len(found) + 1}-{path}"
    found.append(Attachment(path, content, media))
    return {"type": "text", "text": f"[Attached file: inbox/{path}]"}


def readable(messages: Raw) -> Raw:
    """Return a request's messages with the files that are text said as text, for a model that is given no files."""
    decoded: list[dict[str, Any]] = msgspec.json.decode(messages)
    for message in decoded:
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [_as_text(part) for part in content]
    return Raw(_encode(decoded))


def _as_text(part: Any) -> Any:
    found: list[Attachment] = []
    try:
        _without_file(part, "", found)
        text = found[0].content.decode() if found else "\0"
    except (InvalidRequest, UnicodeDecodeError):
        return part
    if "\0" in text:
        return part
    return {"type": "text", "text": f'<file name="{found[0].path}">\n{text}\n</file>'}


class Tokens(NamedTuple):
    """Tokens of a whole tree."""

    input: int
    output: int

    def usage(self) -> dict[str, int]:
        """Return them as `usage`."""
        return {
            "prompt_tokens": self.input,
            "completion_tokens": self.output,
            "total_tokens": self.input + self.output,
        }


class Bound(NamedTuple):
    """What ended a tree before its time: `task_budget_exceeded` or `task_timed_out`, and why in words."""

    code: str
    message: str

    def said(self) -> dict[str, Any]:
        """Return it as the top-level field that chat's own clients pass over: the answer may be short, or nothing at all."""
        return {"hortator_error": {"code": self.code, "message": self.message}}


def completion(
    id: str,
    model: str,
    created: int,
    text: str,
    finish_reason: FinishReason,
    tokens: Tokens,
    bound: Bound | None = None,
) -> bytes:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return _encode(
        {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [choice],
            "usage": tokens.usage(),
            **(bound.said() if bound is not None else {}),
        }
    )


class Chunks:
    """Makes the chunks of one answer, as JSON."""

    def __init__(self, id: str, model: str, created: int, wants_usage: bool) -> None:
        self._head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._wants_usage = wants_usage

    def role(self) -> bytes:
        """Return the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        """Return a piece of the answer."""
        return self._chunk({"content": text})

    def thinking(self, text: str) -> bytes:
        """Return a piece of what goes on before the answer."""
        return self._chunk({"reasoning_content": text})

    def event(self, event: Event) -> bytes:
        """Return an event of the tree (R-000-27). The result is left out: it is the answer itself."""
        said = msgspec.to_builtins(event)
        said.pop("result", None)
        details = {name: value for name, value in event.details.items() if name != "result"}
        shown = {**said, "message": event.message, "details": details}
        return self._chunk({}, None, {"hortator_event": shown})

    def finish(self, reason: FinishReason, bound: Bound | None = None) -> bytes:
        """Return the chunk that ends the answer."""
        return self._chunk({}, reason, None if bound is None else bound.said())

    def usage(self, tokens: Tokens) -> bytes:
        """Return the usage chunk."""
        return _encode({**self._head, "choices": [], "usage": tokens.usage()})

    def _chunk(
        self, delta: dict[str, str], finish: FinishReason | None = None, more: Mapping[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        usage = {"usage": None} if self._wants_usage else {}
        return _encode({**self._head, "choices": [choice], **usage, **(more or {})})
