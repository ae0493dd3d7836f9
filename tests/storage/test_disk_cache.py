"""What the cache of a remote store promises: nothing believed unseen, and room for what is new."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest
from imgkeep.core.errors import StorageError
from imgkeep.storage.disk_cache import CacheShare, DiskCache
from imgkeep.storage.local.store import HASHED_BYTES_MAX, LocalStore
from imgkeep.storage.memory import MemorySpool

from tests.storage.test_contract import keep, read_all
from tests.support.program import until
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

LARGE = random.Random(2).randbytes(HASHED_BYTES_MAX + 1000)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[LocalStore]:
    disk = LocalStore(tmp_path / "disk")
    await disk.open()
    yield disk
    await disk.aclose()


async def copy(cache: DiskCache, body: bytes) -> str:
    """Keep a copy, as a recall does; return its name."""
    name = record_of(body).object_name
    draft = await cache.begin(len(body))
    await draft.write(body)
    await cache.keep(draft, name)
    await draft.aclose()
    return name


async def fetched(cache: DiskCache, name: str) -> bytes | None:
    body = await cache.fetch(name, None)
    if body is None:
        return None
    try:
        return await read_all(body)
    finally:
        await body.aclose()


@pytest.mark.parametrize("body", [b"small" * 10, LARGE], ids=["small", "large"])
async def test_a_copy_comes_back_also_after_a_restart(disk: LocalStore, body: bytes) -> None:
    name = await copy(DiskCache(disk, 10_000_000), body)
    restarted = DiskCache(disk, 10_000_000)
    assert await fetched(restarted, name) == body
    await restarted.open()
    await restarted.counted()
    assert restarted.bytes == len(body)
    await restarted.aclose()


@pytest.mark.parametrize("counted", [False, True])
async def test_a_large_copy_of_an_earlier_process_is_believed_only_when_it_was_read(
    disk: LocalStore, *, counted: bool
) -> None:
    name = await copy(DiskCache(disk, 10_000_000), LARGE)
    path = disk.root / "cache" / name[:2] / name
    path.write_bytes(bytes(len(LARGE)))  # what a power loss can leave: the size and nothing else
    restarted = DiskCache(disk, 10_000_000)
    if counted:
        await restarted.open()
        await restarted.counted()
    assert await fetched(restarted, name) is None
    assert not path.exists()
    await restarted.aclose()


async def test_the_least_recently_used_leaves_first(disk: LocalStore) -> None:
    cache = DiskCache(disk, 3000)
    names = [await copy(cache, bytes([n]) * 1000) for n in range(3)]
    assert await fetched(cache, names[0]) is not None
    names.append(await copy(cache, bytes([3]) * 1000))
    assert [await fetched(cache, name) is not None for name in names] == [True, False, True, True]
    assert cache.bytes == 3000


async def test_more_than_may_stay_was_there_at_start_and_leaves(disk: LocalStore) -> None:
    cache = DiskCache(disk, 10_000)
    for n in range(5):
        await copy(cache, bytes([n]) * 1000)
    smaller = DiskCache(disk, 2000)
    await smaller.open()
    await smaller.counted()
    assert smaller.bytes == 2000
    assert len(list((disk.root / "cache").rglob("*.png"))) == 2
    await smaller.aclose()


async def test_what_is_larger_than_all_of_it_or_in_memory_is_not_kept(disk: LocalStore) -> None:
    cache = DiskCache(disk, 1000)
    assert await fetched(cache, await copy(cache, b"x" * 1001)) is None
    draft = await MemorySpool(1000).begin(3)
    await draft.write(b"abc")
    await cache.keep(draft, record_of(b"abc").object_name)
    assert await fetched(cache, record_of(b"abc").object_name) is None
    assert list((disk.root / "partial").iterdir()) == []


async def test_copies_give_way_to_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By a timer that has always moved on: every look for room is a new one.
    disk = LocalStore(tmp_path / "disk", free_bytes_min=1000, timer=itertools.count(step=10).__next__)
    await disk.open()
    cache = DiskCache(disk, 10_000, free_bytes_min=1000)
    for n in range(5):
        await copy(cache, bytes([n]) * 1000)

    class Usage:
        """A disk of 6,000 bytes."""

        f_flag = f_files = 0
        f_frsize = 1

        def __init__(self, _place: Path) -> None:
            self.free = self.f_bavail = 6000 - sum(path.stat().st_size for path in disk.root.rglob("*.png"))

    monkeypatch.setattr("shutil.disk_usage", Usage)
    monkeypatch.setattr("os.statvfs", Usage)
    draft = await cache.begin(2000)
    assert len(list((disk.root / "cache").rglob("*.png"))) == 3
    await draft.aclose()
    with pytest.raises(StorageError, match="free_bytes_min"):
        await cache.begin(50_000)
    await disk.aclose()


async def test_an_image_is_taken_over_from_the_fallback_without_its_record(disk: LocalStore) -> None:
    cache = DiskCache(disk, 10_000)
    record = await keep(disk, b"body")
    await cache.take(record)
    assert await disk.find(record.key) is None
    assert await fetched(cache, record.object_name) == b"body"
    assert not list((disk.root / "v1" / "objects").rglob("*.png"))
    await cache.take(record)  # done by another process meanwhile


async def test_an_image_that_was_kept_meanwhile_under_the_same_link_stays(disk: LocalStore) -> None:
    cache = DiskCache(disk, 10_000)
    carried = await keep(disk, b"body")
    await disk.delete(carried.key)
    newer = await keep(disk, b"newer body")
    assert newer.key == carried.key
    assert not await cache.take(carried)
    assert await disk.find(newer.key) == newer
    assert await fetched(cache, newer.object_name) is None, "it is the fallback's, and no copy"


async def test_without_room_for_copies_an_image_leaves_the_disk(disk: LocalStore) -> None:
    record = await keep(disk, b"body")
    await DiskCache(disk, 0).take(record)
    assert [path for path in disk.root.rglob("*") if path.is_file()] == []


async def test_a_disk_that_fails_is_a_miss(disk: LocalStore) -> None:
    cache = DiskCache(disk, 10_000)
    name = await copy(cache, b"body")
    disk.root.rename(disk.root.with_name("moved"))
    assert await cache.fetch(name, None) is None
    assert (cache.hits, cache.misses) == (0, 1)


async def test_several_workers_count_every_copy_once_and_stay_within_the_limit(disk: LocalStore) -> None:
    bodies = [random.Random(n).randbytes(1000) for n in range(40)]
    workers: list[DiskCache] = []

    async def tell(copies: Mapping[str, int]) -> None:
        for worker in workers:
            await worker.count_copies(copies)

    workers += [DiskCache(disk, 8000, share=CacheShare(slot, 2, tell)) for slot in range(2)]
    names = [await copy(workers[n % 2], body) for n, body in enumerate(bodies)]

    def there() -> set[str]:
        return {path.name for path in (disk.root / "cache").rglob("*") if path.is_file()}

    # All that was told is counted, whoever brought it.
    await until(lambda: len(there()) * 1000 == sum(worker.bytes for worker in workers) <= 16_000)
    # What another looks after is found all the same, and who starts anew counts its share alone.
    kept = [name for name in names if name in there()]
    for worker in workers:
        assert [await fetched(worker, name) for name in kept] == [bodies[names.index(name)] for name in kept]
    again = [DiskCache(disk, 8000, share=CacheShare(slot, 2, tell)) for slot in range(2)]
    for worker in again:
        await worker.open()
        await worker.counted()
    assert [worker.bytes for worker in again] == [worker.bytes for worker in workers]
    assert there() == set(kept), "who counted more would have removed some"
    for worker in (*workers, *again):
        await worker.aclose()
