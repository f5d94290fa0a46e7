"""The room of files and batches as the composition root has it: built from the settings, its doors, its work beside requests.

`app.py` makes one, starts and drains it, and sends it what is addressed to `/v1/files` and `/v1/batches`. A change of the
configuration leaves it alone: lines walk the corridor of the generation that serves when they are asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from msgspec import Raw
from msgspec.structs import replace

from hortator.api import batches as batches_door
from hortator.api import files as files_door
from hortator.api.batches import BatchesDoor
from hortator.api.files import FilesDoor
from hortator.api.inference import may, resend
from hortator.api.openai import OPERATIONS, Parse
from hortator.api.reading import Receive, Scope, Send
from hortator.api.wishes import take_wish
from hortator.batches import Batches, Files, Tools, Worker
from hortator.call import Call, Caller, ModelId, RequestId, Usage
from hortator.dispatch import Trace
from hortator.errors import InvalidRequest
from hortator.gateway import Gateway
from hortator.settings import Settings
from hortator.store import Database
from hortator.store.blobs import Blobs, Folder
from hortator.store.bucket import bucket
from hortator.tenancy import Identity
from hortator.wire import responses
from hortator.wire.body import Object
from hortator.wire.dialects import Dialect

PATHS = (files_door.PATH, batches_door.PATH)
"""What the addresses of its doors begin with."""

_OPERATIONS: dict[str, tuple[Dialect, Parse]] = {**OPERATIONS, "/v1/responses": ("responses", responses.parse)}
"""What a batch may ask."""


class Batching:
    """The room, its doors and its work."""

    def __init__(
        self, settings: Settings, database: Database, identity: Identity, gateway: Callable[[], Gateway]
    ) -> None:
        """`gateway` returns the corridor that serves now. Raises ConfigError without the extra that a bucket needs."""
        chosen, limits, body_bytes = settings.batches, settings.files, settings.server.max_body_bytes
        kept = blobs(settings)
        files = Files(database, kept, max_bytes=limits.max_bytes, tenant_bytes=limits.tenant_bytes)
        tools = Tools(
            database=database,
            blobs=kept,
            files=files,
            holder=identity.holder,
            complete=unattended(gateway),
            read=read,
            slots=asyncio.Semaphore(chosen.process_lines),
            lines=chosen.lines,
            max_line_bytes=body_bytes,
            lease_seconds=chosen.lease_seconds,
        )
        self._worker = Worker(tools, chosen.running)
        batches = Batches(
            database, files, self._worker, endpoints=tuple(_OPERATIONS), unfinished=chosen.tenant_unfinished
        )
        self._files = FilesDoor(identity.authenticate, files)
        self._batches = BatchesDoor(identity.authenticate, batches, body_bytes)

    @property
    def running(self) -> tuple[int, int]:
        """Batches this process works on, and their lines that are being answered."""
        return self._worker.running

    async def start(self) -> None:
        """Begin to work on batches and to delete files whose time is over."""
        await self._worker.start()

    async def drain(self) -> None:
        """Leave batches to others; what is finished is written down first. Before the corridor ends."""
        await self._worker.drain()

    def door(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Send a request to its door."""
        chosen = self._files if path.startswith(files_door.PATH) else self._batches
        return chosen(scope, receive, send, path)


def blobs(settings: Settings) -> Blobs:
    """Return where the contents of files are kept. Raises ConfigError without the extra that a bucket needs."""
    chosen = settings.files.s3
    return Folder(settings.home / "files") if chosen.bucket is None else bucket(chosen)


def read(endpoint: str, body: bytes, id: RequestId) -> Call:
    """Make a call of a batch's line, as the door of `endpoint` does of a request. Raises InvalidRequest."""
    dialect, parse = _OPERATIONS[endpoint]
    parsed = parse(body)
    if parsed.stream:
        raise InvalidRequest("A line of a batch cannot be streamed.", code="invalid_value", param="stream")
    if dialect == "responses":
        _alone(parsed.body)
    return Call(
        id=id,
        operation=dialect,
        model=ModelId(parsed.model),
        body=parsed.body,
        stream=False,
        wants_usage=False,
        started=time.monotonic(),
        received_at=time.time(),
        wish=take_wish({}, parsed.body),
        resend=resend({}, parsed.body),
        fallback=may(parsed.body, "hortator_fallback"),
    )


def _alone(body: Object) -> None:
    """Let a response neither follow one nor be kept: its result is in the batch's file. Raises InvalidRequest."""
    for name, harmless in (("background", b"false"), ("previous_response_id", b"null")):
        if bytes(body.get(name, b"null")) not in (harmless, b"null"):
            raise InvalidRequest(f"'{name}' means nothing in a batch.", code="unsupported_parameter", param=name)
    body["store"] = Raw(b"false")


def unattended(gateway: Callable[[], Gateway]) -> Callable[[Caller, Call], Awaitable[tuple[bytes, Usage]]]:
    """Return the corridor for calls that no client waits for."""

    async def complete(caller: Caller, call: Call) -> tuple[bytes, Usage]:
        if call.wish.tenant_id is not None:
            caller = replace(await gateway().on_behalf(caller, call.wish.tenant_id), priority=caller.priority)
        trace = Trace()
        # Whoever cancels such a call wants no answer any more: it is recorded like one whose client hung up.
        trace.hang_up()
        body = await gateway().complete(caller, call, trace)
        return body, trace.usage

    return complete
