"""Contents of files, in a folder and in a bucket alike: complete or not there, read in pieces, gone when removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from hortator.errors import NotFound, Unavailable
from hortator.settings import S3, Secret
from hortator.store.blobs import Blobs, Folder
from hortator.store.bucket import Bucket, bucket
from tests.store.s3_server import Objects, running_s3

MEGABYTE = 1 << 20


@pytest.fixture
async def s3() -> AsyncIterator[Objects]:
    async with running_s3() as objects:
        yield objects


def remote(s3: Objects) -> Bucket:
    secret = {"access_key_id": Secret("key"), "secret_access_key": Secret("secret")}
    return bucket(S3(bucket="b", prefix="hortator/", endpoint=s3.address, region="us-east-1", **secret))


@pytest.fixture(params=["folder", "memory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return Folder(tmp_path / "deep" / "files")
    if request.param == "memory":
        return Bucket(MemoryStore(), "p/")
    return remote(request.getfixturevalue("s3"))


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def content(blobs: Blobs, name: str) -> bytes:
    return b"".join([piece async for piece in blobs.read(name)])


@pytest.mark.parametrize("given", [(), (b"",), (b"a", b"", b"b"), (b"x" * MEGABYTE,) * 13])
async def test_a_content_comes_back_as_it_was_written(blobs: Blobs, given: tuple[bytes, ...]) -> None:
    await blobs.put("file-1", pieces(*given))
    assert await content(blobs, "file-1") == b"".join(given)
    await blobs.remove("file-1")
    with pytest.raises(NotFound):
        await content(blobs, "file-1")
    await blobs.remove("file-1")


async def test_a_content_that_breaks_off_is_not_there(blobs: Blobs) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(7):
            yield b"x" * MEGABYTE
        raise LookupError("broken")

    with pytest.raises(LookupError):
        await blobs.put("file-1", broken())
    with pytest.raises(NotFound):
        await content(blobs, "file-1")


async def test_a_folder_holds_only_what_is_complete_and_only_for_its_owner(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "files")
    await folder.put("file-1", pieces(b"a"))
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["file-1"]
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "files" / "file-1").stat().st_mode & 0o777 == 0o600


async def test_a_bucket_is_asked_with_a_signature_and_names_below_its_prefix(s3: Objects) -> None:
    await remote(s3).put("file-1", pieces(b"x" * MEGABYTE, b"y" * 11 * MEGABYTE))
    assert list(s3.stored) == ["b/hortator/file-1"]
    assert s3.signed
    assert s3.parts == {}


async def test_a_bucket_that_refuses_is_unavailable_and_tells_no_secret(
    s3: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    s3.failing = True
    blobs = remote(s3)
    for attempt in (blobs.put("file-1", pieces(b"a")), content(blobs, "file-1"), blobs.remove("file-1")):
        with pytest.raises(Unavailable) as caught:
            await attempt
        assert caught.value.code == "files_unavailable"
    assert "secret" not in caplog.text
