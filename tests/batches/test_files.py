"""Files on the store and in their folder: nothing is left behind, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from hortator.errors import NotFound, TooLarge, Unavailable
from hortator.store import Database
from hortator.store.files import FileScope
from tests.batches.room import Corridor, Room, line, new_tenant, pieces


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Room:
    return Room(database, tmp_path / "files", Corridor())


async def past(room: Room, column: str, id: str) -> None:
    """Make a moment of a file lie in the past."""
    statement = text(f"update files set {column} = '2026-01-01 00:00:00' where id = :id")
    async with room.database.write() as connection:
        await connection.execute(statement, {"id": id})


def names(room: Room, tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").glob("*"))


async def test_an_expired_file_is_gone_at_once_and_its_content_with_the_next_sweep(room: Room, tmp_path: Path) -> None:
    tenant = await new_tenant(room.database)
    kept, gone = await room.upload(tenant, b"a", "user_data"), await room.upload(tenant, b"b", "user_data", 3600)
    await past(room, "expires_at", gone)
    with pytest.raises(NotFound):
        await room.files.find(tenant, gone)
    assert await room.files.sweep() == 1
    assert names(room, tmp_path) == [kept]
    assert await room.files.sweep() == 0


async def test_an_expired_file_that_a_batch_reads_stays_until_it_is_finished(room: Room, tmp_path: Path) -> None:
    tenant = await new_tenant(room.database)
    batch = await room.add(tenant, [line(1)])
    await past(room, "expires_at", batch.input_file_id)
    assert await room.files.sweep() == 0
    async with room.database.write() as connection:
        await connection.execute(text("update batches set status = 'completed'"))
    assert await room.files.sweep() == 1


async def test_an_upload_that_a_crash_cut_off_is_swept_after_a_day(room: Room, tmp_path: Path) -> None:
    tenant = await new_tenant(room.database)
    upload = await room.files.begin(tenant)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / f"{upload._file.id}.part").write_bytes(b"half")
    assert await room.files.page(tenant, after=None, limit=10, ascending=True, purpose=None) == []
    assert await room.files.sweep() == 0
    await past(room, "created_at", upload._file.id)
    assert await room.files.sweep() == 1
    assert names(room, tmp_path) == []


async def test_a_deletion_that_a_crash_cut_off_is_finished(room: Room, tmp_path: Path) -> None:
    tenant = await new_tenant(room.database)
    id = await room.upload(tenant, b"a")
    await FileScope(room.database, tenant).hide(id)
    with pytest.raises(NotFound):
        await room.files.find(tenant, id)
    assert await room.files.sweep() == 1
    assert names(room, tmp_path) == []


async def test_what_breaks_off_leaves_no_content(room: Room, tmp_path: Path) -> None:
    tenant = await new_tenant(room.database)

    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise LookupError

    upload = await room.files.begin(tenant)
    with pytest.raises(LookupError):
        await upload.write(broken())
    await upload.abandon()
    upload = await room.files.begin(tenant)
    with pytest.raises(TooLarge):
        await upload.write(pieces(b"a" * (1 << 20), b"a"))
    await upload.abandon()
    assert names(room, tmp_path) == []
    assert await room.files.sweep() == 0


async def test_a_quota_counts_shown_files_and_uploads_that_end_at_once(room: Room) -> None:
    tenant, other = await new_tenant(room.database), await new_tenant(room.database, "b")
    for _ in range(4):
        await room.upload(tenant, b"a" * (1 << 20))
    with pytest.raises(TooLarge) as caught:
        await room.upload(tenant, b"a")
    assert caught.value.code == "file_quota_exceeded"
    await room.upload(other, b"a")
    assert await FileScope(room.database, tenant).taken() == 1 << 22


async def test_a_folder_that_cannot_be_written_is_unavailable(database: Database, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    room = Room(database, tmp_path / "taken", Corridor())
    with pytest.raises(Unavailable) as caught:
        await room.upload(await new_tenant(database), b"a")
    assert caught.value.code == "files_unavailable"
