"""Records and tombstones in a bucket: read, verified, and written where nothing forbids it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Conflict, Removed, WrittenByNewer
from imgkeep.core.layout import (
    RECORD_BYTES_MAX,
    REMOVED,
    RecordTooNew,
    RecordUnreadable,
    encode_record,
    object_path,
    read_record,
    record_path,
)
from imgkeep.core.records import Tombstone
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import AlreadyThere, BucketError

if TYPE_CHECKING:
    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.storage.bucket.client import BucketClient

REREAD_AFTER_S: Final = 0.2
"""Time after which a corrupt record is read again: longer than a write takes."""
RECORD_FIELDS: Final = ObjectFields("application/json", "no-store")


@dataclass(frozen=True, slots=True)
class CorruptRecord:
    """An unreadable object at the path of a record."""

    etag: str
    data: bytes


class BucketRecords:
    """The records of a bucket."""

    def __init__(self, client: BucketClient) -> None:
        self._client = client

    async def read(self, path: str) -> Record | Tombstone | CorruptRecord | None:
        """
        Read a record or tombstone; `None`: it is not there.

        Raises:
            WrittenByNewer: A newer version wrote it.
            StorageError: The bucket cannot tell.
        """
        opened = await self._client.get(path)
        if opened is None:
            return None
        data = await opened.stream.read_all(RECORD_BYTES_MAX)
        try:
            return read_record(data, path.rpartition("/")[2])
        except RecordTooNew as error:
            raise WrittenByNewer(f"the record was {error}") from None
        except RecordUnreadable:
            return CorruptRecord(opened.etag, data)

    async def find(self, key: Key) -> Record | None:
        """Return the record under a key. As `Store.find`; a corrupt record is moved to quarantine."""
        path = record_path(key)
        found = await self.read(path)
        if isinstance(found, CorruptRecord):
            # Some services do not write atomically (s3rver): a write may have been under way.
            await asyncio.sleep(REREAD_AFTER_S)
            corrupt, found = found, await self.read(path)
            if found == corrupt:
                await self._client.quarantine(path, corrupt.etag)
                return None
        if isinstance(found, CorruptRecord):
            raise BucketError("the bucket answers with something that is no record", general=False)
        if isinstance(found, Tombstone):
            raise Removed(REMOVED)
        return found

    async def put(self, record: Record, replaces: Digest | None) -> None:
        """Write a record whose object is there. As `Store.put_record`."""
        path = record_path(record.key)
        data = encode_record(record)
        if self._client.features.conditional_put and replaces is None:
            try:
                await self._client.put_bytes(path, data, RECORD_FIELDS, only_if_absent=True)
            except AlreadyThere:
                pass  # another writer was quicker
            else:
                return
        await self._require_replaceable(record, replaces)
        await self._client.put_bytes(path, data, RECORD_FIELDS)

    async def _require_replaceable(self, record: Record, replaces: Digest | None) -> None:
        current = await self.find(record.key)
        if current is None or current.digest in {record.digest, replaces}:
            return
        if await self._client.stat(object_path(current.object_name)) is not None:
            raise Conflict("another image was stored under this link meanwhile")
