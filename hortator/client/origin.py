"""The origin project's own surface (wire-compatible): messages with files, and the results of `run`, `chat`, `stream`, `list_models`.

A request is a chat completion at `hortator/<role>` with `x_capabilities`, `x_tier`, `x_budget`. Called by both clients. No I/O but
reading files that the caller names.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from hortator.client.chat import ChatCompletion, ChatCompletionChunk, Usage, completion_request
from hortator.client.errors import ServerError
from hortator.client.order import FileLike, named
from hortator.client.record import Record, plain
from hortator.client.request import Request
from hortator.wire.tasks import Budget, Tier

DEFAULT_ROLE = "default"


@dataclass(frozen=True)
class ContentPart:
    """A part of a message: text, or a file, which agents find in their inbox."""

    type: Literal["text", "file"]
    text: str | None = None
    filename: str | None = None
    data: bytes | None = None

    @classmethod
    def text_part(cls, text: str) -> ContentPart:
        """Make a part of text."""
        return cls("text", text=text)

    @classmethod
    def file_part(cls, filename: str, data: bytes) -> ContentPart:
        """Make a part of a file's content."""
        return cls("file", filename=filename, data=data)

    @classmethod
    def from_path(cls, path: str | Path) -> ContentPart:
        """Make a part of a file on this machine. Raises OSError."""
        return cls.file_part(*named(path))

    def to_dict(self) -> dict[str, Any]:
        """Return it as it is sent."""
        if self.type == "text":
            return {"type": "text", "text": self.text or ""}
        encoded = base64.b64encode(self.data or b"").decode()
        return {"type": "file", "file": {"filename": self.filename, "file_data": encoded}}


@dataclass(frozen=True)
class Message:
    """A message of a conversation."""

    role: str
    content: str | Sequence[ContentPart]

    def to_dict(self) -> dict[str, Any]:
        """Return it as it is sent."""
        content = self.content if isinstance(self.content, str) else [plain(each) for each in self.content]
        return {"role": self.role, "content": content}


class RunResult(Record, kinds={"usage": Usage}):
    """A whole answer."""

    id: str
    content: str
    finish_reason: str | None
    usage: Usage | None
    model: str


class StreamChunk(Record, kinds={"usage": Usage}):
    """A piece of an answer; the last one has a `finish_reason`."""

    content: str
    finish_reason: str | None
    usage: Usage | None


class ModelInfo(Record):
    """A model that the key may use."""

    id: str
    object: str
    created: int
    owned_by: str


def origin_request(
    messages: Sequence[Message | Mapping[str, Any]],
    role: str,
    *,
    stream: bool,
    capabilities: Sequence[str] | None = None,
    tier: Tier | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    **params: Any,
) -> Request:
    """Return the request. A role that holds a slash is a model id as it is."""
    if capabilities is not None:
        params["x_capabilities"] = list(capabilities)
    if tier is not None:
        params["x_tier"] = tier
    if budget is not None:
        params["x_budget"] = msgspec.to_builtins(budget)
    model = role if "/" in role else f"hortator/{role}"
    return completion_request(model, messages, stream=stream, **params)


def prompted(prompt: str, files: Sequence[FileLike]) -> list[Message]:
    """Return a prompt and files as a conversation. Raises OSError, ValueError for a file that cannot be read."""
    if not files:
        return [Message("user", prompt)]
    parts = [ContentPart.file_part(*named(each)) for each in files]
    return [Message("user", [ContentPart.text_part(prompt), *parts])]


def run_result(answer: ChatCompletion) -> RunResult:
    """Return an answer in the origin's form. Raises ServerError where there is none."""
    if not answer.choices:
        raise ServerError("The reply holds no answer.")
    choice = answer.choices[0]
    usage = None if answer.usage is None else answer.usage.to_dict()
    return RunResult(
        {
            "id": answer.id,
            "content": choice.message.content or "",
            "finish_reason": choice.finish_reason,
            "usage": usage,
            "model": answer.model,
        }
    )


def stream_chunk(chunk: ChatCompletionChunk) -> StreamChunk | None:
    """Return a chunk in the origin's form; None for one that says nothing of the answer."""
    choice = chunk.choices[0] if chunk.choices else None
    content = (choice.delta.content or "") if choice is not None and choice.delta is not None else ""
    finish = choice.finish_reason if choice is not None else None
    if not content and finish is None and chunk.usage is None:
        return None
    usage = None if chunk.usage is None else chunk.usage.to_dict()
    return StreamChunk({"content": content, "finish_reason": finish, "usage": usage})
