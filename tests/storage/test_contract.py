"""The contract of every store and its drafts (`Store`, `Spool`), on real servers."""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.derived.names import DERIVED, PictureName
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import OBJECTS, object_path
from imgkeep.core.records import Digest, Doubt, Format, Key, Tombstone
from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.disk_cache import DiskCache
from imgkeep.storage.local.disk import HASHED_BYTES_MAX
from imgkeep.storage.local.store import LocalStore
from imgkeep.storage.memory import MemorySpool
from imgkeep.storage.s3 import S3Client
from tests.support.remote_services import SERVERS
from tests.support.stores import NOON, FakeStore, fetch_image, local_store, put_image, read_all, record_of, spool_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from imgkeep.storage.interfaces import Body, ListableStore, Spool, Store
    from tests.support.bucket_backends import BucketBackend

BODY = random.Random(1).randbytes(100_000)


@dataclass
class Backend:
    """
    A store under test.

    Attributes:
        left: What is stored or lying about, by name: objects, records and whatever is neither.
        break_it: Makes the store unusable, so that it can tell nothing.
    """

    store: Store
    left: Callable[[], dict[str, list[str]]]
    break_it: Callable[[], None]


async def open_local(folder: Path) -> AsyncIterator[Backend]:
    store = local_store(folder)
    await store.open()

    def left() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"objects": [], "records": [], "other": []}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                kind = path.relative_to(folder).parts[1] if path.is_relative_to(folder / "v1") else "other"
                found[kind].append(path.name)
        return found

    yield Backend(store, left, lambda: shutil.rmtree(folder))
    await store.aclose()


async def open_fake(_folder: Path) -> AsyncIterator[Backend]:
    store = FakeStore()
    room = store.spool.bytes_left

    def left() -> dict[str, list[str]]:
        drafts = [] if store.spool.bytes_left == room else ["a draft"]
        return {"objects": sorted(store.objects), "records": [f"{key}.json" for key in store.found], "other": drafts}

    def break_it() -> None:
        store.broken = True

    yield Backend(store, left, break_it)


HERE = {"local": open_local, "fake": open_fake}


LOGIC = pytest.mark.parametrize(
    "place",
    [name for name in (*HERE, *SERVERS) if name not in {"s3rver", "versitygw", "seaweedfs", "strict-gcs"}],
    indirect=True,
    scope="module",
)
"""For cases that depend on the store and on what the service has (a conditional PUT, ranges), not on the server."""


@pytest.fixture(scope="module", params=[*HERE, *SERVERS])
def place(request: pytest.FixtureRequest) -> str:
    """Return the name of a backend. All tests of one come after each other, so few processes start its server."""
    return str(request.param)


@pytest.fixture
async def backend(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend | BucketBackend]:
    folder = tmp_path / "store"
    if place in HERE:
        async for backend in HERE[place](folder):
            yield backend
    else:
        async for bucket in SERVERS[place](place, request, folder):
            yield bucket


@pytest.fixture
def store(backend: Backend) -> Store:
    return backend.store


# --- what is put can be found and fetched


@pytest.mark.parametrize("size", [1, HASHED_BYTES_MAX, HASHED_BYTES_MAX + 1], ids=lambda size: f"{size}-bytes")
async def test_stored_image_is_byte_exact(store: Store, size: int) -> None:
    body = random.Random(size).randbytes(size)
    record = await put_image(store, body)
    assert await store.find(record.key) == record
    assert await fetch_image(store, record) == body


@pytest.mark.parametrize("size", [100_000, 2_000_000], ids=["small", "large"])
async def test_body_is_read_from_any_offset(store: Store, size: int) -> None:
    content = random.Random(size).randbytes(size)
    record = await put_image(store, content)
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    for start, length in [(0, 1), (size - 1, 1), (size - 1, 1000), (12_345, 6789), (size // 2, 65_536)]:
        part = await body.read(start, length)
        assert part == content[start : start + length][: len(part)]
        assert part
    assert await body.read(size, 10) == b""
    assert await body.read(size + 1000, 10) == b""
    await body.aclose()


@LOGIC
async def test_closed_body_leaves_other_readers_alone(store: Store) -> None:
    content = random.Random(4).randbytes(2_000_000)
    record = await put_image(store, content)
    first, second = [await store.fetch(record.object_name, None) for _ in range(2)]
    assert first is not None
    assert second is not None
    await first.aclose()
    assert await read_all(second) == content
    await second.aclose()


async def test_equal_bytes_are_stored_once_under_two_keys(store: Store, backend: Backend) -> None:
    records = [await put_image(store, BODY, record_of(BODY, name=name)) for name in ("a", "b")]
    left = backend.left()
    assert left["objects"] == [records[0].object_name]
    assert sorted(left["records"]) == sorted(f"{record.key}.json" for record in records)
    for record in records:
        assert await store.find(record.key) == record
        assert await fetch_image(store, record) == BODY


async def test_image_is_replaced_by_the_digest_it_has(store: Store, backend: Backend) -> None:
    old = await put_image(store, BODY, record_of(BODY, etag='"one"'))
    other = BODY[::-1]
    record = await put_image(store, other, record_of(other, etag='"two"'), replaces=old.digest)
    assert await store.find(record.key) == record
    assert await fetch_image(store, record) == other
    assert backend.left()["other"] == []


@LOGIC
async def test_image_is_not_replaced_without_its_digest(store: Store, backend: Backend) -> None:
    old = await put_image(store, BODY)
    with pytest.raises(StorageError, match="another image"):
        await put_image(store, BODY[::-1])
    assert await store.find(old.key) == old
    assert await fetch_image(store, old) == BODY
    assert backend.left()["other"] == []


@LOGIC
async def test_record_is_put_without_its_bytes(store: Store, backend: Backend) -> None:
    doubts = frozenset({Doubt.SIGNATURE, Doubt.PLAINTEXT})
    old = await put_image(
        store, BODY, replace(record_of(BODY), trust=replace(record_of(BODY).trust, doubts=doubts, brought_by="0f" * 16))
    )
    assert await store.find(old.key) == old
    new = replace(old, trust=replace(old.trust, doubts=frozenset(), brought_by=""))
    assert await store.put_record(new) == new
    assert await store.find(old.key) == new
    assert await fetch_image(store, new) == BODY
    assert len(backend.left()["objects"]) == 1


@LOGIC
async def test_record_of_another_image_is_put_by_the_old_digest(store: Store) -> None:
    old = await put_image(store, BODY)
    other = await put_image(store, BODY[::-1], replace(record_of(BODY[::-1]), key=Key("0" * 64)))
    moved = replace(other, key=old.key)
    with pytest.raises(StorageError, match="another image"):
        await store.put_record(moved)
    assert await store.find(old.key) == old
    await store.put_record(moved, old.digest)
    assert await store.find(old.key) == moved
    body = await store.fetch(old.object_name, old.size)
    assert body is not None, "and loses nothing"
    await body.aclose()


@LOGIC
async def test_record_is_not_put_over_a_tombstone(store: Store) -> None:
    record = await put_image(store, BODY)
    await store.put_tombstone(Tombstone(record.key, NOON))
    with pytest.raises(Removed):
        await store.put_record(record)


async def test_first_record_of_an_image_counts(store: Store) -> None:
    first = await put_image(store, BODY, record_of(BODY, etag='"one"'))
    for _ in range(2):
        draft = await spool_of(store).begin(len(BODY))
        await draft.write(BODY)
        assert await store.put(draft, record_of(BODY, etag='"two"')) == first, "so that it has one validator"
        await draft.aclose()
        assert await store.find(first.key) == first
        await store.delete_object(first.digest)
    assert await store.fetch(first.object_name, first.size) is None


async def test_second_fill_of_the_same_bytes_removes_doubts(store: Store) -> None:
    doubtful = record_of(BODY, etag='"one"').with_doubts(frozenset({Doubt.PLAINTEXT}))
    first = await put_image(store, BODY, doubtful)
    await put_image(store, BODY, record_of(BODY, etag='"two"'))
    assert await store.find(first.key) == record_of(BODY, etag='"one"')


async def test_reader_goes_on_while_the_image_is_put_again(store: Store) -> None:
    content = random.Random(3).randbytes(2_000_000)
    record = await put_image(store, content)
    body = await store.fetch(record.object_name, record.size)
    assert body is not None
    begun = await body.read(0, 1000)
    await put_image(store, content)
    assert begun + (await read_all(_Shifted(body, len(begun)))) == content
    await body.aclose()


class _Shifted:
    """A body from an offset on."""

    def __init__(self, body: Body, offset: int) -> None:
        self._body, self._offset = body, offset
        self.size = None
        self.cache_entry = None

    async def wait_for_size(self) -> int:
        return await self._body.wait_for_size() - self._offset

    async def read(self, offset: int, size: int) -> bytes:
        return await self._body.read(offset + self._offset, size)

    async def aclose(self) -> None:
        return


# Without s3rver, which writes in place and shows what is half written: two at once are more than it can do.
@pytest.mark.parametrize(
    "place", [name for name in (*HERE, *SERVERS) if name != "s3rver"], indirect=True, scope="module"
)
@pytest.mark.parametrize("names", ["aaaa", "abcd"], ids=["one key", "four keys"])
async def test_concurrent_puts_of_the_same_bytes_succeed(store: Store, backend: Backend, names: str) -> None:
    records = await asyncio.gather(*(put_image(store, BODY, record_of(BODY, name=name)) for name in names))
    assert len(backend.left()["objects"]) == 1
    assert len(backend.left()["records"]) == len(set(names))
    assert backend.left()["other"] == []
    for record in records:
        assert await store.find(record.key) == record
        assert await fetch_image(store, record) == BODY


# --- a miss and a fault


async def test_miss_is_none(store: Store) -> None:
    record = record_of(BODY)
    assert await store.find(record.key) is None
    assert await store.fetch(record.object_name, None) is None
    assert await store.fetch(record.object_name, record.size) is None


async def test_holds_compares_name_and_size(store: Store) -> None:
    record = record_of(BODY)
    assert not await store.holds(record.object_name, record.size)
    await put_image(store, BODY)
    assert await store.holds(record.object_name, record.size)
    assert not await store.holds(record.object_name, record.size + 1)


async def test_tombstone_is_no_miss_and_forbids_a_put(store: Store) -> None:
    other, removed = [await put_image(store, BODY, record_of(BODY, name=name)) for name in ("other", "removed")]
    for _ in range(2):
        await store.put_tombstone(Tombstone(removed.key, NOON))
    with pytest.raises(Removed):
        await store.find(removed.key)
    with pytest.raises(Removed):
        await put_image(store, BODY, removed)
    with pytest.raises(Removed):
        await put_image(store, b"another image", record_of(b"another image", name="removed"))
    assert await store.find(other.key) == other
    assert await fetch_image(store, other) == BODY


@LOGIC
async def test_tombstone_needs_no_record(store: Store) -> None:
    record = record_of(BODY)
    await store.put_tombstone(Tombstone(record.key, NOON))
    with pytest.raises(Removed):
        await store.find(record.key)
    with pytest.raises(Removed):
        await put_image(store, BODY)


@LOGIC
async def test_block_lasts_and_leaves_the_object(store: Store) -> None:
    record = await put_image(store, BODY)
    assert await store.list_blocked() == set()
    for _ in range(2):
        await store.block(record.digest, NOON)
    assert await store.list_blocked() == {record.digest}
    assert await fetch_image(store, record) == BODY


async def test_deleted_object_is_a_miss(store: Store) -> None:
    record, other = await put_image(store, BODY), await put_image(store, b"other", record_of(b"other", name="b"))
    for _ in range(2):
        await store.delete_object(record.digest)
    assert await store.fetch(record.object_name, None) is None
    assert not await store.holds(record.object_name, record.size)
    assert await fetch_image(store, other) == b"other"


@LOGIC
async def test_block_names_its_keys_until_it_is_undone(store: Store) -> None:
    record, other = await put_image(store, BODY), record_of(b"other", name="b")
    assert await store.find_block(record.digest) is None
    await store.block(record.digest, NOON, [other.key, record.key])
    found = await store.find_block(record.digest)
    assert found is not None
    assert set(found) == {record.key, other.key}
    await store.block(other.digest, NOON)
    assert await store.find_block(other.digest) == frozenset()
    for _ in range(2):
        await store.unblock(record.digest)
    assert await store.find_block(record.digest) is None
    assert await store.list_blocked() == {other.digest}


@LOGIC
async def test_only_the_given_tombstone_is_deleted(store: Store) -> None:
    record = await put_image(store, BODY)
    assert await store.find_tombstone(record.key) is None, "a record is none"
    seen = Tombstone(record.key, NOON, record.digest)
    await store.delete_tombstone(seen)
    assert await store.find(record.key) == record, "a record stays"
    later = Tombstone(record.key, NOON.replace(hour=13), record.digest)
    await store.put_tombstone(later)
    await store.delete_tombstone(seen)
    assert await store.find_tombstone(record.key) == later, "a later removal stays"
    await store.delete_tombstone(later)
    assert await store.find_tombstone(record.key) is None
    assert await store.find(record.key) is None
    assert await put_image(store, BODY) == record, "the key is free"
    await store.delete_tombstone(later)
    assert await store.find(record.key) == record


async def test_object_is_found_without_its_extension(store: Store) -> None:
    record, other = await put_image(store, BODY), record_of(b"other")
    assert (await store.has_object(record.digest), await store.has_object(other.digest)) == (True, False)
    for _ in range(2):
        await store.delete_object(record.digest)
    assert not await store.has_object(record.digest)
    assert await store.fetch(record.object_name, None) is None
    assert await store.list_blocked() == set()


async def put_picture(store: LocalStore | BucketStore, name: PictureName, data: bytes) -> None:
    draft = await MemorySpool(len(data)).begin(len(data))
    try:
        await draft.write(data)
        await store.pictures.put(draft, name)
    finally:
        await draft.aclose()


async def fetch_picture(store: LocalStore | BucketStore, name: PictureName) -> bytes | None:
    body = await store.pictures.fetch(name)
    if body is None:
        return None
    try:
        return await read_all(body)
    finally:
        await body.aclose()


@pytest.mark.parametrize("place", [name for name in (*HERE, *SERVERS) if name != "fake"], indirect=True, scope="module")
async def test_pictures_go_with_their_object_and_are_none(store: Store) -> None:
    assert isinstance(store, LocalStore | BucketStore)
    record, other = await put_image(store, BODY), Digest("f" * 64)
    one, two = (PictureName(record.digest, f"w{width}", Format.WEBP) for width in (320, 640))
    assert (await fetch_picture(store, one), await store.pictures.has(one)) == (None, False)
    for name in (one, two, replace(one, digest=other)):
        await put_picture(store, name, BODY[:70_000])
    assert await fetch_picture(store, two) == BODY[:70_000]
    # Where a list is dear, pictures are not counted.
    counted = 0 if isinstance(store, BucketStore) and not store.client.features.cheap_lists else 2
    assert (await store.pictures.has(one), await store.pictures.count(record.digest, 64)) == (True, counted)
    assert [path async for path, _ in store.walk(OBJECTS)] == [object_path(record.object_name)]
    assert [path async for path, _ in store.walk(DERIVED)] == sorted(
        [one.path, two.path, replace(one, digest=other).path]
    )
    for _ in range(2):
        await store.delete_object(record.digest)
    assert (await fetch_picture(store, one), await store.pictures.count(record.digest, 64)) == (None, 0)
    assert await store.pictures.has(replace(one, digest=other))
    await store.block(record.digest, NOON)
    with pytest.raises(Removed):
        await put_picture(store, one, BODY[:100])
    assert not await store.pictures.has(one)
    await store.delete_object(other)


@LOGIC
async def test_failing_store_is_a_fault_and_no_miss(store: Store, backend: Backend) -> None:
    record = await put_image(store, BODY)
    backend.break_it()
    # Together: a client of a bucket that is away repeats each request after a while.
    calls: list[Awaitable[object]] = [
        store.find(record.key),
        store.fetch(record.object_name, record.size),
        store.holds(record.object_name, record.size),
        store.has_object(record.digest),
        store.put_tombstone(Tombstone(record.key, NOON)),
        store.find_tombstone(record.key),
        store.delete_tombstone(Tombstone(record.key, NOON)),
        store.block(record.digest, NOON),
        store.find_block(record.digest),
        store.unblock(record.digest),
        store.list_blocked(),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [number for number, result in enumerate(results) if not isinstance(result, StorageError)] == []


# --- drafts


@pytest.mark.parametrize("place", HERE, indirect=True, scope="module")  # of the spool, which is a disk for all others
@pytest.mark.parametrize("size", [None, 100, 10_000_000], ids=["unknown", "too small", "too large"])
async def test_declared_size_of_a_draft_is_only_a_hint(store: Store, size: int | None) -> None:
    draft = await spool_of(store).begin(size)
    await draft.write(BODY)
    record = record_of(BODY)
    await store.put(draft, record)
    await draft.aclose()
    assert await fetch_image(store, record) == BODY


@pytest.mark.parametrize("place", HERE, indirect=True, scope="module")  # of the spool, which is a disk for all others
async def test_many_readers_follow_a_growing_draft(store: Store) -> None:
    draft = await spool_of(store).begin(None)
    grown = asyncio.Condition()

    async def follow(piece: int) -> bytes:
        data = bytearray()
        while len(data) < len(BODY):
            async with grown:
                while draft.size <= len(data):
                    await grown.wait()
            data += await draft.read(len(data), piece)
        return bytes(data)

    readers = [asyncio.create_task(follow(piece)) for piece in (1000, 4096, 65_536) for _ in range(10)]
    for start in range(0, len(BODY), 7001):
        await draft.write(BODY[start : start + 7001])
        async with grown:
            grown.notify_all()
    assert set(await asyncio.gather(*readers)) == {BODY}
    await draft.aclose()


@pytest.mark.parametrize("place", HERE, indirect=True, scope="module")  # of the spool, which is a disk for all others
async def test_draft_ends_at_the_bytes_written(store: Store) -> None:
    draft = await spool_of(store).begin(1000)
    assert (draft.size, draft.digest) == (0, sha256().hexdigest())
    assert await draft.read(0, 10) == b""
    await draft.write(b"abc")
    assert await draft.read(0, 10) == b"abc"
    assert await draft.read(1, 1) == b"b"
    assert await draft.read(3, 10) == b""
    assert await draft.read(100, 10) == b""
    await draft.aclose()


@pytest.mark.parametrize("place", HERE, indirect=True, scope="module")  # of the spool, which is a disk for all others
async def test_draft_is_checked_as_a_whole(store: Store) -> None:
    draft = await spool_of(store).begin(None)
    await draft.write(BODY[:60_000])
    await draft.write(BODY[60_000:])
    assert await draft.check(lambda body: sha256(body).hexdigest()) == draft.digest == sha256(BODY).hexdigest()
    await draft.aclose()


@pytest.mark.parametrize("place", HERE, indirect=True, scope="module")  # of the spool, which is a disk for all others
async def test_draft_that_is_not_put_leaves_nothing(store: Store, backend: Backend) -> None:
    draft = await spool_of(store).begin(len(BODY))
    await draft.write(BODY)
    await draft.aclose()
    assert backend.left() == {"objects": [], "records": [], "other": []}


@LOGIC
async def test_failed_put_leaves_nothing(store: Store, backend: Backend) -> None:
    draft = await spool_of(store).begin(len(BODY))
    await draft.write(BODY)
    backend.break_it()
    with pytest.raises(StorageError):
        await store.put(draft, record_of(BODY))
    assert await draft.read(0, 100) == BODY[:100], "readers go on"
    await draft.aclose()
    assert backend.left() == {"objects": [], "records": [], "other": []}


def test_implementations_fit_the_interfaces(tmp_path: Path) -> None:
    """Mypy checks the assignments."""
    local, bucket = local_store(tmp_path), BucketStore(S3Client(S3Bucket("images")))
    listable: list[ListableStore] = [local, bucket]
    stores: list[Store] = [*listable, FakeStore()]
    spools: list[Spool] = [local.disk, DiskCache(local.disk, 0), MemorySpool(0)]
    assert [store.name for store in stores] == ["local", "s3", "fake"]
    assert len(spools) == 3
