"""The door of `/v1/files`: uploads, lists, contents and deletion, as raw ASGI, because contents are never held whole.

`app.py` mounts it. It reads the form and writes the objects; the room of batches keeps the files.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from functools import partial

from hortator.api.inference import OPENAI, Exchange, allow, serve
from hortator.api.multipart import Form
from hortator.api.objects import Admit, page, reply, seconds
from hortator.api.query import number, read_query
from hortator.api.reading import Receive, Scope, Send, bearer
from hortator.batches import Files, Upload
from hortator.call import Caller
from hortator.dispatch import Trace
from hortator.errors import HortatorError, InvalidRequest, NotFound, TooLarge
from hortator.store.files import File
from hortator.wire import batches
from hortator.wire.batches import DeletedFile, FileObject

PATH = "/v1/files"
FORM_BYTES = 65_536
"""What a form may have besides its file."""
MAX_PAGE = 10_000
"""Files in one list, and how many there are where nobody says; as OpenAI's."""
MAX_FILENAME = 255

log = logging.getLogger(__name__)


class FilesDoor:
    """Everything under `/v1/files`."""

    def __init__(self, admit: Admit, files: Files) -> None:
        self._admit = admit
        self._files = files

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        return serve(scope, receive, send, OPENAI, partial(self._answer, path))

    async def _answer(self, path: str, exchange: Exchange, _: Trace) -> None:
        caller = await self._admit(bearer(exchange.headers))
        match path[len(PATH) :].split("/"):
            case [""]:
                allow(exchange, "GET", "HEAD", "POST")
                if exchange.method == "POST":
                    await self._upload(exchange, caller)
                else:
                    await self._list(exchange, caller)
            case ["", id] if id:
                allow(exchange, "GET", "HEAD", "DELETE")
                if exchange.method == "DELETE":
                    await self._files.delete(caller.tenant_id, id)
                    await reply(exchange, DeletedFile(id))
                else:
                    await reply(exchange, shown(await self._files.find(caller.tenant_id, id)))
            case ["", id, "content"] if id:
                allow(exchange, "GET", "HEAD")
                await self._content(exchange, await self._files.find(caller.tenant_id, id))
            case _:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")

    async def _upload(self, exchange: Exchange, caller: Caller) -> None:
        limit = self._files.max_bytes
        if int(exchange.headers.get(b"content-length", b"0")) > limit + FORM_BYTES:
            raise TooLarge(f"The file is over the limit of {limit} bytes.", code="file_too_large")
        form = Form(exchange.headers.get(b"content-type", b""), exchange.receive)
        upload = await self._files.begin(caller.tenant_id)
        try:
            file = await _taken(form, upload)
        except BaseException:
            await upload.abandon()
            raise
        await reply(exchange, shown(file))

    async def _list(self, exchange: Exchange, caller: Caller) -> None:
        asked = read_query(exchange.query)
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("'order' must be asc or desc.", code="invalid_value", param="order")
        purpose = asked.get("purpose")
        if purpose is not None and purpose not in (*batches.PURPOSES, "batch_output"):
            raise InvalidRequest("'purpose' is none that a file can have.", code="invalid_value", param="purpose")
        limit = number(asked, "limit", MAX_PAGE, 1, MAX_PAGE)
        found = await self._files.page(
            caller.tenant_id,
            after=asked.get("after"),
            limit=limit + 1,
            ascending=order == "asc",
            purpose=purpose,
        )
        await reply(exchange, page([shown(file) for file in found[:limit]], len(found) > limit))

    async def _content(self, exchange: Exchange, file: File) -> None:
        """Write a content as it is read. A failure after the status line can only break the reply off."""
        pieces = self._files.content(file)
        first = await anext(pieces, b"")
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % file.bytes),
            (b"x-request-id", exchange.id.encode()),
        ]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        if exchange.method == "HEAD" or await _written(exchange, first, pieces):
            await exchange.send({"type": "http.response.body", "body": b""})


async def _taken(form: Form, upload: Upload) -> File:
    """Read a form to its end; return its file. Fields may come before the file or after it."""
    fields: dict[str, str] = {}
    filename = ""
    async for part in form.parts():
        if part.name != "file":
            fields[part.name] = await part.text()
        elif upload.size is not None:
            raise InvalidRequest("The form has more than one file.", code="invalid_form", param="file")
        else:
            if "purpose" in fields:
                batches.purpose(fields)
            filename = (part.filename or "upload").rpartition("/")[2][:MAX_FILENAME].replace("\0", "")
            await upload.write(part.content())
    purpose, lifetime = batches.purpose(fields), batches.expiry(fields)
    if upload.size is None:
        raise InvalidRequest("Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
    return await upload.finish(filename, purpose, lifetime)


async def _written(exchange: Exchange, first: bytes, pieces: AsyncIterator[bytes]) -> bool:
    """Write the pieces; False when they broke off, which ends the connection too."""
    await exchange.send({"type": "http.response.body", "body": first, "more_body": True})
    try:
        async for piece in pieces:
            await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
    except HortatorError as error:
        log.warning("a file's content broke off: request=%s %s", exchange.id, error.code)
        return False
    return True


def shown(file: File) -> FileObject:
    """Return a file as clients see it."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
        expires_at=seconds(file.expires_at),
    )
