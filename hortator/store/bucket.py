"""Contents of files in a bucket of S3, or of anything that speaks its protocol. The one owner of obstore, the extra `s3`.

The same interface as the folder of `blobs.py`. Uploads of more than 5 MiB go in parts, several at once; one that breaks off is
aborted, but a process that is killed leaves parts that only a lifecycle rule of the bucket removes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from hortator.errors import ConfigError
from hortator.settings import S3
from hortator.store.blobs import PIECE_BYTES, gone, unavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger("hortator.store")


class Bucket:
    """Contents as objects of a bucket."""

    def __init__(self, store: ObjectStore, prefix: str = "") -> None:
        """`store` is one of obstore's; `prefix` is put before every name."""
        import obstore

        self._obstore = obstore
        self._store = store
        self._prefix = prefix

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write a content."""
        failed: list[BaseException] = []

        async def watched() -> AsyncIterator[bytes]:
            try:
                async for piece in pieces:
                    yield piece
            except BaseException as error:
                failed.append(error)
                raise

        try:
            await self._obstore.put_async(self._store, self._prefix + name, watched())
        except self._obstore.exceptions.BaseError as error:
            if failed:
                raise failed[0] from None
            raise self._failed(error) from None

    async def read(self, name: str) -> AsyncIterator[bytes]:
        """Give the content's pieces."""
        try:
            found = await self._obstore.get_async(self._store, self._prefix + name)
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)
        except FileNotFoundError:
            raise gone() from None
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise self._failed(error) from None

    async def remove(self, name: str) -> None:
        """Delete a content."""
        try:
            await self._obstore.delete_async(self._store, self._prefix + name)
        except FileNotFoundError:
            return
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> Exception:
        log.warning("the bucket does not do what it must: %s", type(error).__name__)
        return unavailable()


def bucket(chosen: S3) -> Bucket:
    """Return the configured bucket. Raises ConfigError without the extra."""
    try:
        from obstore.store import S3Store
    except ImportError:
        raise ConfigError("files.s3.bucket: needs the extra: pip install 'hortator[s3]'") from None
    options = {
        "endpoint": chosen.endpoint,
        "region": chosen.region,
        "access_key_id": None if chosen.access_key_id is None else chosen.access_key_id.reveal(),
        "secret_access_key": None if chosen.secret_access_key is None else chosen.secret_access_key.reveal(),
    }
    known = {name: value for name, value in options.items() if value is not None}
    plain = chosen.endpoint is not None and chosen.endpoint.startswith("http:")
    store = S3Store(chosen.bucket, config=known, client_options={"allow_http": plain})  # type: ignore[arg-type]
    return Bucket(store, chosen.prefix)
