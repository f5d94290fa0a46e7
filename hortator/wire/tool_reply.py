"""Reads a schema-constrained reply back into `tool_calls`: the other half of `tool_schema.py`.

`providers/local.py` feeds it a whole reply or the events of a stream. The model's text is one JSON object
(`{"tool": NAME, "arguments": {...}}` or `{"tool": "none", "answer": ...}`), and is taken apart while it grows, so that an
answer streams as plain content and arguments stream as they come. A text that was cut off stays cut off: `finish_reason` is
`tool_calls` only for a call whose arguments are complete. Pure: no I/O.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, Literal

import msgspec

from hortator.wire.tool_schema import Plan

Piece = tuple[Literal["content", "name", "arguments"], str]

_HEAD = re.compile(r'\s*\{\s*"tool"\s*:\s*"([^"\\]*)"\s*,\s*"(?:answer|arguments)"\s*:\s*(?=[^\s])')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)
_CUT_ESCAPE = re.compile(
    r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?)\Z"
)
"""An escape at the end of what has arrived that may still grow, a first surrogate without its second included."""


class ReplyText:
    """The text of one choice, taken apart as it arrives."""

    __slots__ = ("_depth", "_escaped", "_plan", "_quoted", "_rest", "_state", "called", "complete")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._state: Literal["head", "string", "value", "end"] = "head"
        self._rest = ""
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self.called = False
        """The model chose a tool."""
        self.complete = False
        """The answer, or the call's arguments, came to their end."""

    def feed(self, text: str) -> list[Piece]:
        """Return what `text` adds. Pieces of one kind follow each other; `name` comes once, before its `arguments`."""
        self._rest += text
        pieces: list[Piece] = []
        if self._state == "head":
            head = _HEAD.match(self._rest)
            if head is None:
                return []
            self._rest = self._rest[head.end() :]
            self.called = head[1] != self._plan.no_tool
            if self.called:
                pieces.append(("name", head[1]))
            self._state = "value"
            if not self.called and not self._plan.raw_answer:
                self._state = "string"
                self._rest = self._rest[1:]  # its opening quote
        added = self._string() if self._state == "string" else self._value() if self._state == "value" else ""
        if added:
            pieces.append(("arguments" if self.called else "content", added))
        return pieces

    def finish(self) -> list[Piece]:
        """Return what is left when the text is over: a text that never had our form is content, as it stands."""
        if self._state == "head" and self._rest and not self._rest.lstrip().startswith("{"):
            self._state = "end"
            return [("content", self._rest)]
        return []

    def _string(self) -> str:
        """Decode what has arrived of a JSON string, holding back an escape that is not whole yet."""
        end = _STRING_END.match(self._rest)
        if end is not None:
            raw, self._rest = end[0][:-1], ""
            self._state, self.complete = "end", True
        else:
            cut = _CUT_ESCAPE.search(self._rest)
            at = len(self._rest) if cut is None else cut.start(1)
            raw, self._rest = self._rest[:at], self._rest[at:]
        text: str = json.loads(f'"{raw}"', strict=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _value(self) -> str:
        """Take what has arrived of a JSON value, up to the brace that closes the object around it."""
        for at, char in enumerate(self._rest):
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                if self._depth == 0:
                    self._state, self.complete = "end", True
                    text, self._rest = self._rest[:at], ""
                    return text.rstrip()
                self._depth -= 1
        text, self._rest = self._rest, ""
        return text


def whole(body: bytes, plan: Plan) -> bytes:
    """Return a whole reply with its choices' texts turned into answers and calls. A body that is no completion stays as it is."""
    try:
        reply = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        return body
    for choice in choices:
        message = choice["message"]
        text = ReplyText(plan)
        pieces = text.feed(message.get("content") or "") + text.finish()
        parts = {kind: "".join(part for k, part in pieces if k == kind) for kind in ("content", "name", "arguments")}
        message["content"] = None if text.called else parts["content"]
        if text.called:
            _put_call(message, plan, {"name": parts["name"], "arguments": parts["arguments"]}, first=True)
            if not plan.legacy:
                del message["tool_calls"][0]["index"]
        choice["finish_reason"] = _reason(choice.get("finish_reason"), text, plan)
    return msgspec.json.encode(reply)


class ToolStream:
    """The stream of one reply: payloads of events in, payloads out (none, one or more for each)."""

    __slots__ = ("_plan", "_texts")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._texts: dict[int, ReplyText] = {}

    def feed(self, payload: bytes) -> list[bytes]:
        """Return the payloads that stand for this one. What is no chunk with choices (usage, errors, `[DONE]`) passes."""
        try:
            chunk = msgspec.json.decode(payload)
        except (msgspec.DecodeError, RecursionError):
            return [payload]
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not choices:
            return [payload]
        told = [part for choice in choices for part in self._choice(choice)]
        return [msgspec.json.encode({**chunk, "choices": [part]}) for part in told]

    def _choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the choices that stand for this one: what it says, and apart from it how it ends."""
        index = choice.get("index", 0)
        text = self._texts.get(index)
        if text is None:
            text = self._texts[index] = ReplyText(self._plan)
        delta = choice.get("delta") or {}
        reason = choice.get("finish_reason")
        pieces = text.feed(delta.get("content") or "")
        if reason is not None:
            pieces += text.finish()
        said: dict[str, Any] = {}
        if delta.get("role"):
            said = {"role": delta["role"], "content": ""}
        function: dict[str, str] = {}
        for kind, part in pieces:
            if kind == "content":
                said["content"] = part
            else:
                function[kind] = part
        if function:
            first = "name" in function
            _put_call(said, self._plan, {**function, "arguments": function.get("arguments", "")}, first=first)
        parts = [{"index": index, "delta": said, "finish_reason": None}] if said else []
        if reason is not None:
            parts.append({"index": index, "delta": {}, "finish_reason": _reason(reason, text, self._plan)})
        return parts


def _put_call(target: dict[str, Any], plan: Plan, function: dict[str, str], *, first: bool) -> None:
    """Add a call, or what a chunk adds to it, to a message or a delta. The model makes one call a reply, so its index is 0."""
    if plan.legacy:
        target["function_call"] = function
        return
    head = {"id": f"call_{secrets.token_hex(12)}", "type": "function"} if first else {}
    target["tool_calls"] = [{"index": 0, **head, "function": function}]


def _reason(reason: str | None, text: ReplyText, plan: Plan) -> str | None:
    """Return why the model stopped, in the client's words."""
    if text.called and text.complete and reason == "stop":
        return "function_call" if plan.legacy else "tool_calls"
    return reason
