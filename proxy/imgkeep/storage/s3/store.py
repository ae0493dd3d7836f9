"""
The store in a bucket: the stored layout, and what S3-compatible services may not be trusted with.

Rules:
- Nothing counts as stored because somebody answered 200 (`uploads`).
- Nothing counts as read because it came: a record has to be one, and objects are hashed by whoever keeps a copy.
- `If-None-Match: *` is used where a probe showed that it works, and saves a request then; nothing relies on it.
- Object before record, both verified, so a record in the bucket means that its object is there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_hex
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from imgkeep.core.errors import Conflict, Removed, WrittenByNewer
from imgkeep.core.layout import (
    RECORD_BYTES_MAX,
    REFUSAL_BYTES_MAX,
    REFUSED,
    REMOVED,
    RecordTooNew,
    RecordUnreadable,
    encode_record,
    encode_refusal,
    encode_tombstone,
    object_names,
    object_path,
    read_object_name,
    read_record,
    read_refusal_keys,
    read_refusal_path,
    record_path,
    refusal_path,
)
from imgkeep.core.records import Digest, Format, Record, Tombstone
from imgkeep.storage.local.open_files import check_all
from imgkeep.storage.s3.body import PIECE_BYTES, S3Body
from imgkeep.storage.s3.client import BucketClient, read_etag
from imgkeep.storage.s3.errors import EXISTS, MISSING, NOT_S3, RACED, BucketError
from imgkeep.storage.s3.uploads import Uploader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from datetime import datetime
    from mmap import mmap

    from imgkeep.core.records import Key
    from imgkeep.core.store_url import Bucket
    from imgkeep.storage.interfaces import Body, Draft, Spool

T = TypeVar("T")

PROBE: Final = "v1/probe"
PROBE_BYTES: Final = b"imgkeep was here to see whether this bucket works\n"
"""Always the same, and left in place: nodes that look at the same time do not disturb each other."""

RECORDS_AT_ONCE: Final = 16
BYTES_PER_S_MIN: Final = 1_048_576
"""A bucket that takes an image more slowly than this is as good as away: the outbox has more time."""
REREAD_AFTER_S: Final = 0.2
IDLE_CHECK_S: Final = 30
"""A bucket that answered so recently is asked nothing for its health: requests cost money."""

RECORD_FIELDS: Final = {"ContentType": "application/json", "CacheControl": "no-store"}
CACHE_CONTROL: Final = "public, max-age=31536000, immutable"


class S3Store:
    """A store in a bucket. Implements `ListableStore`."""

    name = "s3"
    local_drafts_only = False

    def __init__(
        self,
        bucket: Bucket,
        *,
        timeout_s: float = 5,
        observe: Callable[[str, str, float], None] = lambda *_: None,
    ) -> None:
        self.client = BucketClient(bucket, timeout_s=timeout_s, observe=observe)
        self._uploads = Uploader(self.client)
        self.conditional = False
        """Whether a probe showed that `If-None-Match: *` works on PUT."""
        self._probed = False

    async def open(self) -> None:
        await self.client.open()

    async def aclose(self) -> None:
        await self._uploads.aclose()
        await self.client.aclose()

    async def check(self) -> int:
        """Look whether the bucket answers, unless it has just done so; 0, because a bucket has no end."""
        if asyncio.get_running_loop().time() - self.client.answered_at <= IDLE_CHECK_S:
            return 0
        if not self._probed or await self.client.stat(PROBE) is None:
            await self.probe()
        return 0

    async def probe(self) -> None:
        """
        Do all that keeping an image takes, with a small object that stays: put, get, miss, and a conditional put.

        Raises:
            StorageError: Something of that does not work.
        """
        await self._uploads.put_bytes(PROBE, PROBE_BYTES, {"ContentType": "text/plain"})
        opened = await self.client.get(PROBE)
        if opened is None or await opened.stream.read_all(len(PROBE_BYTES) + 1) != PROBE_BYTES:
            raise BucketError("the bucket gives back something else than was put")
        missing = await self.client.get(f"{PROBE}-{token_hex(8)}")
        if missing is not None:
            missing.stream.close()
            raise BucketError(NOT_S3)
        await self._probe_condition()
        self._probed = True

    async def find(self, key: Key) -> Record | None:
        path = record_path(key)
        found = await self._read_record(path)
        if isinstance(found, _Damage):
            # Not every store writes whole or not at all (s3rver): it may have been in the middle of it.
            await asyncio.sleep(REREAD_AFTER_S)
            damage, found = found, await self._read_record(path)
            if found == damage:
                await self._quarantine(path, damage.etag)
                return None
        if isinstance(found, _Damage):
            raise BucketError("the bucket answers with something that is no record", general=False)
        if isinstance(found, Tombstone):
            raise Removed(REMOVED)
        return found

    async def fetch(self, name: str, size: int | None) -> Body | None:
        path = object_path(name)
        opened = await self.client.get(path)
        if opened is None:
            return None
        body = S3Body(self.client, path, opened)
        if size is None or body.size == size:
            return body
        # The hash decides which of them is wrong: a record that lies must not cost us a good object.
        if await _hash(body) != name.partition(".")[0]:
            await self._quarantine(path, body.etag)
            return None
        opened = await self.client.get(path)
        return None if opened is None else S3Body(self.client, path, opened)

    async def holds(self, name: str, size: int) -> bool:
        return await self.size_of(name) == size

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        try:
            # Besides the time each call has: the whole of it keeps a visitor waiting.
            async with asyncio.timeout(self.client.timeout_s + draft.size / BYTES_PER_S_MIN):
                await self.put_object(draft, record.object_name)
                await self._put_record(record, replaces)
        except TimeoutError:
            raise BucketError("the bucket takes an image too slowly") from None
        return record

    async def import_image(self, draft: Draft | None, record: Record) -> Record:
        if draft is not None:
            await self.put_object(draft, record.object_name)
        if await self.size_of(record.object_name) != record.size:
            raise BucketError("the bucket does not have what it said it took")
        try:
            await self._put_record(record, None)
        except Conflict:
            theirs = await self.find(record.key)
            if theirs is None:
                raise
            return theirs
        return record

    async def put_object(self, draft: Draft, name: str) -> None:
        await self._uploads.put_draft(object_path(name), draft, _fields(name))

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        await self._put_record(record, replaces)
        return record

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
        await self._uploads.put_bytes(record_path(tombstone.key), encode_tombstone(tombstone), RECORD_FIELDS)

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        await self._uploads.put_bytes(refusal_path(digest), encode_refusal(digest, removed_at, keys), RECORD_FIELDS)

    async def delete_object(self, digest: Digest) -> None:
        # What its extension was is not known for sure, and deleting what is not there costs nothing.
        for name in object_names(digest):
            await self.client.call("delete_object", Key=self.client.bucket.path(object_path(name)))

    async def list_blocked(self) -> set[Digest]:
        return {digest async for path, _ in self.walk(REFUSED) if (digest := read_refusal_path(path)) is not None}

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        opened = await self.client.get(refusal_path(digest))
        return None if opened is None else read_refusal_keys(await opened.stream.read_all(REFUSAL_BYTES_MAX))

    async def unblock(self, digest: Digest) -> None:
        await self._delete(refusal_path(digest))

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        found = await self._read_record(record_path(key))
        return found if isinstance(found, Tombstone) else None

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        if await self.find_tombstone(tombstone.key) == tombstone:
            await self._delete(record_path(tombstone.key))

    async def has_object(self, digest: Digest) -> bool:
        # One LIST, where thirteen extensions would be as many requests.
        prefix = self.client.bucket.path(object_path(f"{digest}."))
        answer = await self.client.call("list_objects_v2", Prefix=prefix, MaxKeys=1)
        if "KeyCount" not in answer and "Contents" not in answer and "Name" not in answer:
            raise BucketError(NOT_S3)
        return bool(answer.get("Contents"))

    async def _delete(self, path: str) -> None:
        """Delete what lies at a path, and look whether it is gone: a 200 alone proves nothing."""
        await self.client.call("delete_object", Key=self.client.bucket.path(path))
        left = await self.client.get(path)
        if left is not None:
            left.stream.close()
            raise BucketError("the bucket still has what it said it deleted", general=False)

    async def size_of(self, name: str) -> int | None:
        stat = await self.client.stat(object_path(name))
        return None if stat is None else stat.size

    async def has(self, name: str) -> bool:
        # The first byte, and not a HEAD, which cannot say that something is missing and not the bucket itself.
        opened = await self.client.get(object_path(name), Range="bytes=0-0")
        if opened is not None:
            await opened.stream.read_all(1)
        return opened is not None

    async def quarantine_if_corrupt(self, name: str, digest: Digest) -> None:
        path = object_path(name)
        opened = await self.client.get(path)
        if opened is None:
            return
        body = S3Body(self.client, path, opened)
        # Bytes that come another way each time were changed on their way, and what lies there may be good.
        if await _hash(body) == digest != name.partition(".")[0]:
            await self._quarantine(path, body.etag)

    def public_url(self, name: str) -> str:
        return f"{self.client.public_base}/{quote(self.client.bucket.path(object_path(name)))}"

    async def presign(self, name: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        return await self.client.presign(object_path(name), ttl_s=ttl_s, head=head)

    def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        return self.client.walk(folder)

    async def read_records(self, paths: Sequence[str]) -> Sequence[tuple[str, Record | Tombstone | RecordUnreadable]]:
        places = asyncio.Semaphore(RECORDS_AT_ONCE)

        async def read(path: str) -> tuple[str, Record | Tombstone | RecordUnreadable | None]:
            async with places:
                try:
                    found = await self._read_record(path)
                except WrittenByNewer as error:
                    return path, RecordTooNew(str(error))
                return path, RecordUnreadable("it is no record") if isinstance(found, _Damage) else found

        return [(path, found) for path, found in await asyncio.gather(*map(read, paths)) if found is not None]

    async def hash_object(self, path: str) -> Digest | None:
        opened = await self.client.get(path)
        return None if opened is None else await _hash(S3Body(self.client, path, opened))

    async def check_object(self, path: str, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        opened = await self.client.get(path)
        if opened is None:
            return None
        body = S3Body(self.client, path, opened)
        # On a disk and not in memory: it may be as large as `fetch.body_bytes_max` lets it.
        with await asyncio.to_thread(TemporaryFile) as file:
            async for piece in body.pieces():
                await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(file.flush)
            return await asyncio.to_thread(check_all, file.fileno(), file.tell(), check)

    async def quarantine(self, path: str) -> None:
        stat = await self.client.stat(path)
        if stat is not None:
            await self._quarantine(path, stat.etag)

    async def _quarantine(self, path: str, etag: str) -> None:
        """Copy to `damaged/` and delete, for buckets have no rename; but only what has the tag of what was read."""
        key = self.client.bucket.path(path)
        aside = self.client.bucket.path(f"damaged/{path.rpartition('/')[2]}.{token_hex(4)}")
        source = {"Bucket": self.client.bucket.name, "Key": key}
        try:
            copied = await self.client.call("copy_object", Key=aside, CopySource=source, CopySourceIfMatch=f'"{etag}"')
        except BucketError as error:
            if error.error_code in EXISTS | {MISSING}:
                return  # somebody else was quicker, or has put a good one in its place
            raise
        if not read_etag(copied.get("CopyObjectResult", {})):
            raise BucketError(NOT_S3)
        stat = await self.client.stat(path)
        if stat is not None and stat.etag == etag:
            await self.client.call("delete_object", Key=key)

    async def _probe_condition(self) -> None:
        try:
            await self.client.call("put_object", Key=self.client.bucket.path(PROBE), Body=PROBE_BYTES, IfNoneMatch="*")
        except BucketError as error:
            # Who does not know the field may answer anything; what else is wrong was found out before.
            self.conditional = error.error_code in EXISTS
        else:
            self.conditional = False

    async def _read_record(self, path: str) -> Record | Tombstone | _Damage | None:
        """
        Read a record or tombstone; `None`: it is not there.

        Raises:
            WrittenByNewer: It is of a version that we do not know.
        """
        opened = await self.client.get(path)
        if opened is None:
            return None
        data = await opened.stream.read_all(RECORD_BYTES_MAX)
        try:
            return read_record(data, path.rpartition("/")[2])
        except RecordTooNew as error:
            raise WrittenByNewer(f"the record was {error}") from None
        except RecordUnreadable:
            return _Damage(opened.etag, data)

    async def _put_record(self, record: Record, replaces: Digest | None) -> None:
        path = record_path(record.key)
        data = encode_record(record)
        if self.conditional and replaces is None:
            try:
                await self._uploads.put_bytes(path, data, {**RECORD_FIELDS, "IfNoneMatch": "*"})
            except BucketError as error:
                # 409: two puts met (S3 API, "ConditionalRequestConflict"). Either way somebody else was quicker.
                if error.error_code not in EXISTS | RACED:
                    raise
            else:
                return
        theirs = await self.find(record.key)
        if (
            theirs is not None
            and theirs.digest not in {record.digest, replaces}
            and await self.size_of(theirs.object_name) is not None
        ):
            raise Conflict("another image was stored under this link meanwhile")
        await self._uploads.put_bytes(path, data, RECORD_FIELDS)


@dataclass(frozen=True, slots=True)
class _Damage:
    """What lies where a record should be."""

    etag: str
    data: bytes


async def _hash(body: S3Body) -> Digest:
    digest = sha256()
    async for piece in body.pieces():
        digest.update(piece)
    return Digest(digest.hexdigest())


def _fields(name: str) -> dict[str, str]:
    read = read_object_name(name)
    assert read is not None
    format_ = read[1]
    fields = {"ContentType": format_.media_type, "CacheControl": CACHE_CONTROL}
    if format_ is Format.SVG:
        # A redirect cannot bring the sandboxing policy along; in an <img> this changes nothing.
        fields["ContentDisposition"] = f'attachment; filename="{name[:16]}.svg"'
    return fields
