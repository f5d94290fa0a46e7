"""Files that agents made, as the doors of tasks and orchestrations write them: one, or all as a tar archive.

The room of teams reads them; of an archive one file is in memory at a time. Names in an archive cannot leave the folder it is unpacked in,
and the same files make the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
import tarfile
from collections.abc import Sequence
from urllib.parse import quote

from hortator.api import problem
from hortator.api.inference import Exchange, respond
from hortator.api.reading import HangUp
from hortator.call import Caller
from hortator.dispatch import Trace
from hortator.errors import HortatorError, NotFound
from hortator.orchestration.teams import Teams
from hortator.store.tasks import File

OUTBOX = "outbox/"
"""Where agents put what they give; its files are a task's artifacts."""
_END = bytes(2 * tarfile.BLOCKSIZE)

log = logging.getLogger(__name__)


async def one(exchange: Exchange, teams: Teams, caller: Caller, id: str, path: str) -> None:
    """Write a file; `outbox/` may be left out of its path. Raises NotFound (`artifact_not_found`)."""
    wanted = path if path.startswith(OUTBOX) else OUTBOX + path
    if "\0" in wanted or not wanted[len(OUTBOX) :]:
        raise NotFound("There is no such artifact.", code="artifact_not_found")
    file, content = await teams.file(caller, id, wanted)
    headers = _attachment(exchange, b"application/octet-stream", file.path.rpartition("/")[2])
    await respond(exchange, 200, headers, content)


async def tar(exchange: Exchange, trace: Trace, teams: Teams, caller: Caller, id: str, files: Sequence[File]) -> None:
    """Write an archive: the task's own files by their path below `outbox/`, those of tasks below it in folders named by task id.

    A failure after the head can only break the reply off.
    """
    headers = _attachment(exchange, b"application/x-tar", f"{id}-artifacts.tar")
    if exchange.method == "HEAD":
        await respond(exchange, 200, headers, b"")
        return
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    with HangUp(trace.hang_up, exchange.direct, exchange.receive):
        try:
            for name, file in sorted((member_name(file, id), file) for file in files):
                kept, content = await teams.file(caller, file.task_id, file.path)
                body = _member(name, kept) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
                await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
        except (HortatorError, asyncio.CancelledError) as raised:
            log.info("an archive of files broke off: request=%s %s", exchange.id, trace.failure(raised).code)
            return
    await exchange.send({"type": "http.response.body", "body": _END})


def member_name(file: File, id: str) -> str:
    """Return a file's name in the archive of the task `id`: relative, without `.`, `..` and empty parts."""
    below = file.path.removeprefix(OUTBOX)
    parts = [part for part in below.replace("\\", "_").split("/") if part not in ("", ".", "..")]
    name = "/".join(parts) or "file"
    return name if file.task_id == id else f"{file.task_id}/{name}"


def _member(name: str, file: File) -> bytes:
    """Return the head of a file in an archive."""
    info = tarfile.TarInfo(name)
    info.size = file.bytes
    info.mtime = int(file.created_at.timestamp())
    return info.tobuf(tarfile.PAX_FORMAT)


def _attachment(exchange: Exchange, kind: bytes, filename: str) -> problem.Headers:
    """Return the headers of something to be saved, never shown: agents wrote it."""
    plain = "".join(each if each.isascii() and each.isprintable() and each not in '"\\%' else "_" for each in filename)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
    return [
        (b"content-type", kind),
        (b"content-disposition", disposition.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", exchange.id.encode()),
    ]
