"""A chat stream between upstream and client: checks every chunk, relays it as it came or mended, and knows how far it is.

Dispatch feeds the payloads of an upstream's events and gets client bytes back. A chunk that already obeys the encoder rules
is relayed byte for byte; one that breaks them (nulls in a delta, no index, no `choices`) is mended, because real clients
lose text or throw on it. Rules: omit absent keys, first chunk carries the role, every choice and tool delta has an index,
usage only when asked for, `[DONE]` only after a finish reason.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from hortator.errors import HortatorError, InvalidReply, TruncatedStream
from hortator.wire.chat import WireUsage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
OPENING = b": hortator\n\n"


class FunctionDelta(Struct):
    """A piece of a function call. Continuations must not carry a null name."""

    name: str | UnsetType | None = UNSET
    arguments: str | UnsetType | None = UNSET


class ToolDelta(Struct):
    """A piece of a tool call."""

    index: int | UnsetType | None = UNSET
    id: str | int | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    function: FunctionDelta | UnsetType | None = UNSET


class Delta(Struct):
    """What a chunk adds to one choice. `reasoning` and `reasoning_content` are the names providers use for thinking."""

    role: str | UnsetType | None = UNSET
    content: str | list[Raw] | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    tool_calls: list[ToolDelta] | UnsetType | None = UNSET
    function_call: Any = UNSET
    audio: Any = UNSET


class Choice(Struct):
    """One choice of a chunk."""

    index: int | UnsetType | None = UNSET
    delta: Delta | UnsetType | None = UNSET
    finish_reason: str | UnsetType | None = UNSET


class Chunk(Struct):
    """One `chat.completion.chunk`, as far as the gateway reads it."""

    choices: list[Choice] | UnsetType | None = UNSET
    id: str | int | UnsetType | None = UNSET
    created: int | float | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    usage: WireUsage | UnsetType | None = UNSET
    error: Any = None


class ErrorEvent(Exception):
    """The upstream sent an error inside its stream; `error` is the decoded error object."""

    def __init__(self, error: Any) -> None:
        super().__init__("error event")
        self.error = error


class _WithUsage(Struct):
    """A chunk's usage as the upstream wrote it, fields that the gateway does not know included."""

    usage: Raw


_chunk = msgspec.json.Decoder(Chunk)
_usage_of = msgspec.json.Decoder(_WithUsage)
_encode = msgspec.json.encode


def _only_content(delta: Delta) -> bool:
    """Whether a delta is a plain piece of text, as nearly all are."""
    return (
        delta.tool_calls is UNSET
        and delta.refusal is UNSET
        and delta.reasoning_content is UNSET
        and delta.reasoning is UNSET
        and delta.function_call is UNSET
        and delta.audio is UNSET
    )


class ChatStream:
    """The state of one upstream stream. Not reusable: a new upstream gets a new one."""

    __slots__ = (
        "_created",
        "_finished",
        "_id",
        "_opened",
        "_opening",
        "_tool_index",
        "_usage_payload",
        "_usage_sent",
        "_wants_usage",
        "committed",
        "done",
        "failure",
        "model",
        "text_length",
        "usage",
    )

    def __init__(self, wants_usage: bool) -> None:
        self._wants_usage = wants_usage
        self._usage_sent = False
        self._usage_payload = b""
        self._id: str | int | None = None
        self._created: int | float = 0
        self._opened: set[int] = set()
        self._opening: set[int] = set()
        self._finished: set[int] = set()
        self._tool_index: dict[int, int] = {}
        self.committed = False
        """Content has been seen: nothing may be tried elsewhere any more."""
        self.done = False
        """The upstream said `[DONE]`."""
        self.failure: Exception | None = None
        """What went wrong after the bytes that `feed` returned last; nothing more comes."""
        self.usage: WireUsage | None = None
        self.model: str | None = None
        self.text_length = 0
        """Characters of content and reasoning relayed, for estimating tokens when the upstream never reports them."""

    @property
    def finished(self) -> bool:
        """Every choice that began has its finish reason."""
        return bool(self._finished) and self._opened <= self._finished

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return what the client gets for these events; a bad one sets `failure`, and what came before it still counts."""
        return b"".join([b"data: " + piece + b"\n\n" for piece in self.payloads(payloads)])

    def payloads(self, payloads: list[bytes]) -> list[bytes]:
        """Return the data of what `feed` says: chunks that obey the rules, without the `[DONE]`."""
        out = []
        for payload in payloads:
            if payload == b"[DONE]":
                self.done = True
                break
            if 10 in payload:  # JSON over several `data:` lines; what we relay is one line
                payload = payload.replace(b"\n", b" ")
            try:
                piece = self._event(payload)
            except (InvalidReply, ErrorEvent) as failure:
                self.failure = failure
                break
            if piece is not None:
                out.append(piece)
        return out

    def failed(self, error: HortatorError) -> bytes:
        """Return nothing: the dialect's error event does not depend on the stream, and the door says it."""
        return b""

    def end(self) -> bytes:
        """Return the stream's last bytes, `[DONE]` included. Raises TruncatedStream when no finish reason came."""
        if not self.finished:
            raise TruncatedStream("The provider's stream ended before its answer was complete.")
        if self._wants_usage and not self._usage_sent and self.usage is not None:
            return b"data: " + msgspec.json.encode(self._usage_chunk()) + b"\n\n" + DONE
        return DONE

    def _usage_chunk(self) -> dict[str, Any]:
        """Make the usage chunk for a client that asked, when the upstream put its usage elsewhere."""
        return {
            "id": self._id or "",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.model or "",
            "choices": [],
            "usage": _usage_of.decode(self._usage_payload).usage,
        }

    def _event(self, payload: bytes) -> bytes | None:
        """Check one chunk; return it as it goes to the client, None to drop it."""
        try:
            chunk = _chunk.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidReply("The provider sent a chunk that is not a chat completion chunk.") from None
        if chunk.error:
            raise ErrorEvent(chunk.error)
        if self.model is None and chunk.model:
            self.model = chunk.model
            self._id = chunk.id or None
            self._created = chunk.created or 0
        usage = chunk.usage
        if usage:
            self.usage = usage
            self._usage_payload = payload
        choices = chunk.choices
        if not choices:
            return self._bare(payload, chunk)
        clean = not usage or self._wants_usage
        self._opening.clear()
        for position, choice in enumerate(choices):
            clean = self._choice(position, choice) and clean
        return payload if clean else self._mend(payload)

    def _bare(self, payload: bytes, chunk: Chunk) -> bytes | None:
        """Handle a chunk without choices: the usage chunk, or a provider's own notice (Azure sends filter results first)."""
        if chunk.usage:
            if not self._wants_usage:
                return None
            self._usage_sent = True
        return payload if isinstance(chunk.choices, list) else self._mend(payload)

    def _choice(self, position: int, choice: Choice) -> bool:
        """Take note of one choice; return whether it obeys the encoder rules as it is."""
        index = choice.index
        clean = isinstance(index, int)
        if not isinstance(index, int):
            index = position
        delta = choice.delta
        if index not in self._opened:
            self._opened.add(index)
            self._opening.add(index)
            clean = clean and bool(delta) and bool(delta.role) and delta.content is not UNSET  # type: ignore[union-attr]
        if choice.finish_reason:
            if choice.finish_reason == "error":
                raise ErrorEvent("The provider ended the answer with an error.")
            self._finished.add(index)
            self.committed = True
        if not delta:
            return False
        content = delta.content
        if content:
            self.committed = True
            self.text_length += len(content)
        clean = clean and content is not None and delta.role is not None
        return clean if _only_content(delta) else self._extras(index, delta) and clean

    def _extras(self, index: int, delta: Delta) -> bool:
        """Take note of what is not content (thinking, refusal, tool calls); return whether it obeys the rules."""
        thinking = delta.reasoning_content or delta.reasoning
        if thinking:
            self.committed = True
            self.text_length += len(thinking)
        if delta.refusal or delta.function_call or delta.audio:
            self.committed = True
        extras = (
            delta.reasoning_content,
            delta.reasoning,
            delta.refusal,
            delta.function_call,
            delta.audio,
            delta.tool_calls,
        )
        clean = None not in extras
        for tool in delta.tool_calls or ():
            self.committed = True
            clean = self._tool(index, tool) and clean
        return clean

    def _tool(self, index: int, tool: ToolDelta) -> bool:
        """Take note of one piece of a tool call; return whether it obeys the rules."""
        function = tool.function
        if function and function.arguments:
            self.text_length += len(function.arguments)
        if not isinstance(tool.index, int) or isinstance(tool.id, int):
            return False
        known = tool.index <= self._tool_index.get(index, -1)
        if not known:
            if not tool.id:
                return False
            self._tool_index[index] = tool.index
        if None in (tool.id, tool.type, function):
            return False
        return not function or None not in (function.name, function.arguments)

    def _mend(self, payload: bytes) -> bytes:
        """Rewrite a chunk so that it obeys the encoder rules; unknown fields stay."""
        chunk: dict[str, Any] = msgspec.json.decode(payload)
        if not self._wants_usage:
            chunk.pop("usage", None)
        choices = chunk.get("choices") or []
        chunk["choices"] = [self._mend_choice(position, choice) for position, choice in enumerate(choices)]
        return msgspec.json.encode(chunk)

    def _mend_choice(self, position: int, choice: dict[str, Any]) -> dict[str, Any]:
        """Give a choice its index, its role if it is the first, and drop nulls from its delta."""
        index = choice.get("index")
        if not isinstance(index, int):
            index = position
        delta = {key: value for key, value in (choice.get("delta") or {}).items() if value is not None}
        if index in self._opening:
            delta = {"role": "assistant", "content": ""} | delta
        if "tool_calls" in delta:
            delta["tool_calls"] = [self._mend_tool(index, tool) for tool in delta["tool_calls"]]
        return choice | {"index": index, "delta": delta, "finish_reason": choice.get("finish_reason")}

    def _mend_tool(self, index: int, tool: dict[str, Any]) -> dict[str, Any]:
        """Give a piece of a tool call its index, a new call its id, and drop nulls."""
        tool = {key: value for key, value in tool.items() if value is not None}
        if "function" in tool:
            tool["function"] = {key: value for key, value in tool["function"].items() if value is not None}
        last = self._tool_index.get(index, -1)
        place = tool.get("index")
        if not isinstance(place, int):
            place = last + 1 if "id" in tool or last < 0 else last
        if place > last:
            self._tool_index[index] = place
            tool.setdefault("id", f"call_{self._id}_{index}_{place}")
            tool.setdefault("type", "function")
        if "id" in tool:
            tool["id"] = str(tool["id"])
        return tool | {"index": place}
