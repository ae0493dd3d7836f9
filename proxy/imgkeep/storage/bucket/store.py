"""
The store in a bucket: the stored layout, without trust in what services promise.

Rules:
- A 200 alone proves no upload (`BucketClient`).
- An answer alone proves no read: a record has to be one, and a store that makes a copy hashes the object.
- Of several nodes that store a record at once a conditional PUT chooses one. Where the service has none, they read the
  record again (`records`).
- The object goes before the record, both verified, so a record in the bucket means that its object is there.
- After an object was put, the store looks for a block of its digest, and deletes the object if there is one: another
  node may have removed these bytes. The look goes on beside the next request, so it costs a request and no time. A
  removal puts the block before it deletes the object. So either the look finds the block, or the deletion comes after
  the PUT and finds the object.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from hashlib import sha256
from secrets import token_hex
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.errors import Conflict, Removed, WrittenByNewer
from imgkeep.core.layout import (
    REMOVED,
    RecordTooNew,
    RecordUnreadable,
    encode_tombstone,
    object_names,
    object_path,
    read_object_name,
    record_path,
)
from imgkeep.core.records import Digest, Format, Record, Tombstone
from imgkeep.storage.bucket.blocked_digests import BucketBlockedDigests, delete_and_check
from imgkeep.storage.bucket.body import PIECE_BYTES, BucketBody
from imgkeep.storage.bucket.client import CACHE_CONTROL, PROBE_BYTES, ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.pictures import BucketPictures
from imgkeep.storage.bucket.records import RECORD_FIELDS, BucketRecords, CorruptRecord
from imgkeep.storage.local.open_files import check_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime
    from mmap import mmap

    from imgkeep.core.records import Key
    from imgkeep.storage.bucket.client import BucketClient
    from imgkeep.storage.bucket.unsettled_records import UnsettledRecords
    from imgkeep.storage.interfaces import Body, Draft, Spool

T = TypeVar("T")

RECORDS_CONCURRENT_MAX: Final = 16
BYTES_PER_S_MIN: Final = 1_048_576
"""Minimum speed of an upload while a client waits: a slower bucket is as good as away, and the outbox has more time."""
IDLE_CHECK_S: Final = 30
"""Maximum age of an answer that proves the bucket's health: requests cost money."""

HASH_BYTES_MAX: Final = 1_073_741_824
"""Maximum size of an object that is read and hashed because its record has another size: a client waits for it."""

PROBE: Final = "v1/probe"


class BucketStore:
    """A store in a bucket. Implements `ListableStore`."""

    local_drafts_only = False

    def __init__(self, client: BucketClient) -> None:
        self.name = client.service
        self.client = client
        self._records = BucketRecords(client)
        self._blocks = BucketBlockedDigests(client)
        self.pictures = BucketPictures(client, self._blocks)
        self._is_probed = False

    @property
    def unsettled(self) -> UnsettledRecords:
        """The records that have to be read again."""
        return self._records.unsettled

    async def open(self) -> None:
        await self.client.open()

    async def aclose(self) -> None:
        await self.client.aclose()

    async def check(self) -> int:
        """Check that the bucket answers, unless it has just done so; return 0, because a bucket has no limit."""
        if asyncio.get_running_loop().time() - self.client.answered_at <= IDLE_CHECK_S:
            return 0
        if not self._is_probed or await self.client.stat(PROBE) is None:
            await self.probe()
        return 0

    async def probe(self) -> None:
        """
        Do what storing an image takes, with a small object that stays: put, get, miss, and a conditional put.

        Raises:
            StorageError: One of these steps fails.
        """
        await self.client.put_bytes(PROBE, PROBE_BYTES, ObjectFields("text/plain"))
        opened = await self.client.get(PROBE)
        if opened is None or await opened.stream.read_all(len(PROBE_BYTES) + 1) != PROBE_BYTES:
            raise BucketError("the bucket returns other bytes than were put")
        missing = await self.client.get(f"{PROBE}-{token_hex(8)}")
        if missing is not None:
            missing.stream.close()
            raise BucketError("the bucket returns an object that is not there")
        await self.client.probe_features(PROBE)
        self._is_probed = True

    async def find(self, key: Key) -> Record | None:
        return await self._records.find(key)

    async def fetch(self, name: str, size: int | None) -> Body | None:
        path = object_path(name)
        opened = await self.client.get(path)
        if opened is None:
            return None
        body = BucketBody(self.client, path, opened)
        if size is None or body.size == size:
            return body
        if body.size > HASH_BYTES_MAX:
            await body.aclose()
            raise BucketError("a huge object that is not ours is under the name of an image", general=False)
        # The hash decides which of them is wrong: a wrong record must not cost a good object.
        if await _hash(body) != name.partition(".")[0]:
            await self.client.quarantine(path, body.etag)
            return None
        opened = await self.client.get(path)
        return None if opened is None else BucketBody(self.client, path, opened)

    async def holds(self, name: str, size: int) -> bool:
        return await self.size_of(name) == size

    def note_seen(self, record: Record) -> None:
        """Note that this node uses a record from now on: without conditional PUT another one may be on its way."""
        if not self.client.features.conditional_put and not record.pending:
            self.unsettled.note_seen(record)

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        try:
            # Besides the timeout of each call: a client waits for all of them together.
            async with asyncio.timeout(self.client.timeout_s + draft.size / BYTES_PER_S_MIN):
                await self.put_object(draft, record.object_name)
                if replaces is None:
                    return await self._unless_blocked(record.object_name, self._records.add(record))
                # A replacement waits for the look: a record that names removed bytes must not replace a good one.
                await self._require_not_blocked(record.object_name)
                return await self._records.change(record, replaces)
        except TimeoutError:
            raise BucketError("the bucket takes an image too slowly", general=False) from None

    async def import_image(self, draft: Draft | None, record: Record) -> Record:
        """
        Take an image from another store; return the record that is under its key then.

        The object is stored in any case, because its URL was handed out; the record, unless another image is stored
        under the key. Without a draft the object has to be here already.

        Raises:
            Removed: The bytes are blocked, or there is a tombstone.
            StorageError: It may not be stored.
        """
        if draft is not None:
            await self.put_object(draft, record.object_name)
        if await self._unless_blocked(record.object_name, self.size_of(record.object_name)) != record.size:
            await self._require_not_blocked(record.object_name)  # a removal after the look has deleted it
            raise BucketError("the bucket accepted an object and does not have it", general=False)
        try:
            return await self._records.add(record)
        except Conflict:
            theirs = await self.find(record.key)
            if theirs is None:
                raise
            return theirs

    async def _unless_blocked(self, name: str, step: Awaitable[T]) -> T:
        """Do the next step after the PUT of an object, and look for a block of its digest meanwhile."""
        look, done = await asyncio.gather(self._require_not_blocked(name), step, return_exceptions=True)
        if isinstance(look, BaseException):
            raise look
        if isinstance(done, BaseException):
            raise done
        return done

    async def _require_not_blocked(self, name: str) -> None:
        """
        Delete the object `<digest>.<ext>` if its digest is blocked.

        Raises:
            Removed: It is.
            StorageError: The bucket cannot tell, or the object may be left.
        """
        digest = Digest(name.partition(".")[0])
        if await self.find_block(digest) is None:
            return
        await self.client.delete(object_path(name))
        if await self.find_block(digest) is None:
            # The object of another node may have been deleted with this one.
            raise BucketError("the removal of the image was undone while it was put: retry the request", general=False)
        raise Removed(REMOVED)

    async def put_object(self, draft: Draft, name: str) -> None:
        try:
            await self.client.put_draft(object_path(name), draft, _fields(name))
        except BucketError as fault:
            # A server on the way may break off because of the size of this image. A probe tells, and soon.
            fault.general = fault.general and bool(fault.error_code)
            raise

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        return await self._records.change(record, replaces)

    async def open_draft(self, name: str, spool: Spool) -> Draft | None:
        body = await self.fetch(name, None)
        if body is None:
            return None
        try:
            draft = await spool.begin(body.size)
            try:
                while piece := await body.read(draft.size, PIECE_BYTES):
                    await draft.write(piece)
            except BaseException:
                await draft.aclose()
                raise
        finally:
            await body.aclose()
        return draft

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        await self.client.put_bytes(record_path(tombstone.key), encode_tombstone(tombstone), RECORD_FIELDS)

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        await self._blocks.put(digest, removed_at, keys)

    async def delete_object(self, digest: Digest) -> None:
        # Its extension is not known for sure, and deleting a missing object costs nothing.
        for name in object_names(digest):
            await self.client.delete(object_path(name))
        await self.pictures.delete_all(digest)

    async def list_blocked(self) -> Collection[Digest]:
        return await self._blocks.list_all()

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        return await self._blocks.find(digest)

    async def unblock(self, digest: Digest) -> None:
        await self._blocks.delete(digest)

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        found = await self._records.read(record_path(key))
        return found if isinstance(found, Tombstone) else None

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        if await self.find_tombstone(tombstone.key) == tombstone:
            await delete_and_check(self.client, record_path(tombstone.key))

    async def has_object(self, digest: Digest) -> bool:
        # One request, where thirteen extensions would be as many.
        return await self.client.has_any(object_path(f"{digest}."))

    async def size_of(self, name: str) -> int | None:
        """Return the size of the object `<digest>.<ext>`, as the bucket has it now; `None`: it is not there."""
        stat = await self.client.stat(object_path(name))
        return None if stat is None else stat.size

    async def has(self, name: str) -> bool:
        """Tell whether the object `<digest>.<ext>` is there, with a single request."""
        if not self.client.features.ranges:
            return await self.client.stat(object_path(name)) is not None
        # The first byte, and not a HEAD, which cannot tell a missing object from a missing bucket.
        opened = await self.client.get(object_path(name), end=1)
        if opened is not None:
            await opened.stream.read_all(1)
        return opened is not None

    async def quarantine_if_corrupt(self, name: str, digest: Digest) -> None:
        """Read an object again that was read with another `digest`, and move it to quarantine if it really has that."""
        path = object_path(name)
        opened = await self.client.get(path)
        if opened is None:
            return
        body = BucketBody(self.client, path, opened)
        # Bytes that differ from read to read were changed on their way, and the object may be good.
        if await _hash(body) == digest != name.partition(".")[0]:
            await self.client.quarantine(path, body.etag)

    def public_url(self, name: str) -> str:
        """Return the public URL of an object, if the bucket is public."""
        return self.client.public_url(object_path(name))

    async def presign(self, name: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link to an object, for HEAD or else for GET, and its life in seconds, `ttl_s` at most."""
        return await self.client.presign(object_path(name), ttl_s=ttl_s, head=head)

    def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        return self.client.walk(folder)

    async def read_records(self, paths: Sequence[str]) -> Sequence[tuple[str, Record | Tombstone | RecordUnreadable]]:
        slots = asyncio.Semaphore(RECORDS_CONCURRENT_MAX)

        async def read(path: str) -> tuple[str, Record | Tombstone | RecordUnreadable | None]:
            async with slots:
                try:
                    found = await self._records.read(path)
                except WrittenByNewer as error:
                    return path, RecordTooNew(str(error))
                return path, RecordUnreadable("it is no record") if isinstance(found, CorruptRecord) else found

        return [(path, found) for path, found in await asyncio.gather(*map(read, paths)) if found is not None]

    async def hash_object(self, path: str) -> Digest | None:
        opened = await self.client.get(path)
        return None if opened is None else await _hash(BucketBody(self.client, path, opened))

    async def check_object(self, path: str, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        opened = await self.client.get(path)
        if opened is None:
            return None
        body = BucketBody(self.client, path, opened)
        # On a disk and not in memory: it may be as large as `fetch.body_bytes_max`.
        with await asyncio.to_thread(TemporaryFile) as file:
            async with aclosing(body.pieces()) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(file.flush)
            return await asyncio.to_thread(check_all, file.fileno(), file.tell(), check)

    async def quarantine(self, path: str) -> None:
        stat = await self.client.stat(path)
        if stat is not None:
            await self.client.quarantine(path, stat.etag)


async def _hash(body: BucketBody) -> Digest:
    digest = sha256()
    async for piece in body.pieces():
        digest.update(piece)
    return Digest(digest.hexdigest())


def _fields(name: str) -> ObjectFields:
    read = read_object_name(name)
    assert read is not None
    format_ = read[1]
    # A redirect cannot carry the sandboxing policy of an SVG; in an <img> this field changes nothing.
    disposition = f'attachment; filename="{name[:16]}.svg"' if format_ is Format.SVG else ""
    return ObjectFields(format_.media_type, CACHE_CONTROL, disposition)
