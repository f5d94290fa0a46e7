"""Orders: what a caller says to `tasks.create` (R-000-15, R-000-16), as the request that is sent.

An order with files is a form, one without is JSON. It carries an Idempotency-Key of its own, so that sending it again after a broken
connection orders nothing twice. Called by both clients; reads the files that are named, nothing else.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypedDict

import msgspec

from hortator.client.record import plain
from hortator.client.request import Request
from hortator.wire.tasks import Budget, Capability, TaskConfig, Tier

FileLike = str | Path | IO[bytes] | IO[str] | tuple[str, bytes | str]
"""A path, an open file, or a name and content."""
TASKS = "/api/v1/tasks"


class OrderFields(TypedDict, total=False):
    """What else an order may say; docs/api-contracts.md has the meaning of each."""

    messages: Sequence[Any]
    """Chat messages, instead of a prompt."""
    description: str
    task: str
    model: str
    role: str
    repository: str
    callback_url: str
    callback_events: Sequence[str]
    timeout: str | int
    """Of the task: seconds, or such as `10m`."""
    budget: Budget | Mapping[str, Any]
    tier: Tier
    capabilities: Sequence[Capability]
    hortator_config: Mapping[str, Any]
    """Parameters of the domain."""


def named(file: FileLike) -> tuple[str, bytes]:
    """Return a file's name for agents and its content. A relative path is kept, of others only the last part. Raises OSError, ValueError."""
    if isinstance(file, tuple):
        name, content = file
        return name, content.encode() if isinstance(content, str) else bytes(content)
    if isinstance(file, str | Path):
        path = Path(file)
        return _short(path), path.read_bytes()
    read = file.read()
    content = read.encode() if isinstance(read, str) else read
    own: object = getattr(file, "name", None)
    return _short(Path(own)) if isinstance(own, str) else "file", content


def _short(path: Path) -> str:
    """Return what agents call a file: where it is below the current folder, if it is."""
    parts = PurePosixPath(path.as_posix()).parts
    inside = not path.is_absolute() and ".." not in parts
    return "/".join(parts) if inside else path.name


def order_request(
    order: Mapping[str, Any],
    config: TaskConfig | Mapping[str, Any] | None,
    files: Sequence[FileLike],
    idempotency_key: str | None,
) -> Request:
    """Return the request. Fields of the order that are None are left out. Raises OSError, ValueError for a file that cannot be read."""
    body = {name: value for name, value in order.items() if value is not None}
    if "messages" in body:
        body["messages"] = [plain(each) for each in body["messages"]]
    if config is not None:
        body["config"] = msgspec.to_builtins(config)
    encoded = msgspec.json.encode(body)
    kind = "application/json"
    if files:
        boundary = uuid.uuid4().hex
        encoded = form(boundary, encoded, [named(each) for each in files])
        kind = f"multipart/form-data; boundary={boundary}"
    headers = {"Content-Type": kind, "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Request(method="POST", path=TASKS, headers=headers, body=encoded, idempotent=True)


def form(boundary: str, order: bytes, files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a form of a part `task` and parts `files` (RFC 7578)."""
    pieces = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="task"\r\nContent-Type: application/json\r\n\r\n'.encode(),
        order,
    ]
    for name, content in files:
        quoted = name.replace("\r", "%0D").replace("\n", "%0A").replace("\\", "\\\\").replace('"', '\\"')
        head = f'Content-Disposition: form-data; name="files"; filename="{quoted}"\r\nContent-Type: application/octet-stream'
        pieces += [f"\r\n--{boundary}\r\n{head}\r\n\r\n".encode(), content]
    pieces.append(f"\r\n--{boundary}--\r\n".encode())
    return b"".join(pieces)
