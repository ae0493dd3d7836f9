"""
Records and tombstones in a bucket: read, verified, and written where nothing forbids it.

A record is added with a conditional PUT where the service has it: one of several nodes succeeds, and the others adopt
its record, so that an image has one validator everywhere. (24 PUTs at once, 15 times: one winner each time on Ceph RGW
16.2, SeaweedFS, VersityGW and moto.) Garage, rclone and others have none. Then a node checks, puts, and reads back what
stands there:

1. A checks the key and finds nothing. B does, too.
2. A puts its record, reads it back, and shows its image. C looks the key up, finds the record of A, and shows it, too.
3. B, whose check was before step 2, puts its record, reads it back, and shows its own image.

So a read-back right after a PUT does not show the record of B to A and C. But the check and the PUT of B take
`PUT_WINDOW_S` together at most, else B gives up. So the PUT of B ends within that time after the PUT of A, and within
that time after C has seen the record of A. Every other node checks after the PUT of A, finds a record, and puts none.

4. After `SETTLE_AFTER_S` A and C read the record again, in the background, and adopt the record of B: in memory, in the
   image index, and in their cached responses (`replication/record_settler.py`). B reads its own again and finds it.

A change or a replacement of a record is a check and a PUT without a condition on every service; its node reads it again
as well. Where a service carries out a PUT even later, that read misses it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.confirmation import adopt
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
from imgkeep.storage.bucket.errors import NOT_TAKEN, AlreadyThere, BucketError
from imgkeep.storage.bucket.unsettled_records import PUT_WINDOW_S, UnsettledRecords

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.storage.bucket.client import BucketClient

REREAD_AFTER_S: Final = 0.2
"""Time after which a corrupt record is read again: longer than a write takes."""
ADDS_MAX: Final = 3
"""Maximum number of conditional PUTs of one record: each failed for an object that was gone before it could be read."""
ANOTHER: Final = "another image was stored under this link meanwhile"
RECORD_FIELDS: Final = ObjectFields("application/json", "no-store")


@dataclass(frozen=True, slots=True)
class CorruptRecord:
    """An unreadable object at the path of a record."""

    etag: str
    data: bytes


class BucketRecords:
    """
    The records of a bucket.

    Attributes:
        unsettled: The records that have to be read again.
    """

    def __init__(self, client: BucketClient) -> None:
        self.unsettled = UnsettledRecords()
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

    async def add(self, record: Record) -> Record:
        """
        Write the record of a new image, whose object is there; return the record that stands. As `Store.put`.

        The record of the same image stays if another fill, here or on another node, has stored it first.
        """
        for _ in range(ADDS_MAX if self._client.features.conditional_put else 0):
            try:
                await self._client.put_bytes(
                    record_path(record.key), encode_record(record), RECORD_FIELDS, only_if_absent=True
                )
            except AlreadyThere:
                standing = await self.find(record.key)
                if standing is not None:
                    return await self._add_over(standing, record)
            else:
                return record
        if self._client.features.conditional_put:
            raise BucketError("the bucket has a record already, and does not return it", general=False)
        async with _put_window():
            standing = await self.find(record.key)
            if standing is not None:
                return await self._add_over(standing, record)
            await self._put(record)
        return await self._read_back(record)

    async def change(self, record: Record, replaces: Digest | None = None) -> Record:
        """Write a record in the place of one of the same image, or of the image that it replaces. As `put_record`."""
        async with _put_window():
            current = await self.find(record.key)
            if current is not None and current.digest not in {record.digest, replaces}:
                await self._require_lost(current)
            await self._put(record)
        return record

    async def _add_over(self, standing: Record, record: Record) -> Record:
        """Return the standing record, with what the new one proves; put the new one if the standing image is lost."""
        adopted = adopt(standing, record)
        if adopted is None:
            await self._require_lost(standing)
            return await self.change(record, standing.digest)
        return standing if adopted == standing else await self.change(adopted)

    async def _put(self, record: Record) -> None:
        await self._client.put_bytes(record_path(record.key), encode_record(record), RECORD_FIELDS)
        self.unsettled.note_put(record)

    async def _read_back(self, record: Record) -> Record:
        """Return the record that stands after a PUT without a condition."""
        standing = await self.find(record.key)
        if standing is None:
            raise BucketError(NOT_TAKEN, general=False)
        if standing.object_name != record.object_name:
            raise Conflict(ANOTHER)
        self.unsettled.note_seen(standing)
        return standing

    async def _require_lost(self, record: Record) -> None:
        """Raise `Conflict` if the object of a record is there."""
        if await self._client.stat(object_path(record.object_name)) is not None:
            raise Conflict(ANOTHER)


@asynccontextmanager
async def _put_window() -> AsyncGenerator[None]:
    """Bound the time from a check to the end of the PUT that relies on it. Raises: BucketError."""
    try:
        async with asyncio.timeout(PUT_WINDOW_S):
            yield
    except TimeoutError:
        raise BucketError("the bucket takes a record too slowly") from None
