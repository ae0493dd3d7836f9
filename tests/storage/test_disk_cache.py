"""The disk cache of a remote store: copies are verified, counted and evicted."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.storage.cache_index import CacheShare
from imgkeep.storage.disk_cache import DiskCache
from imgkeep.storage.local.disk import HASHED_BYTES_MAX, Disk
from imgkeep.storage.local.store import LocalStore
from imgkeep.storage.memory import MemorySpool
from tests.support.stores import limit_disk, put_image, read_all, record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

LARGE = random.Random(2).randbytes(HASHED_BYTES_MAX + 1000)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path / "disk")
    await disk.open()
    yield disk
    await disk.aclose()


async def copy(cache: DiskCache, body: bytes) -> str:
    """Put a copy, as a remote read does; return its name."""
    name = record_of(body).object_name
    draft = await cache.begin(len(body))
    await draft.write(body)
    await cache.put(draft, name)
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
async def test_copy_survives_a_restart(disk: Disk, body: bytes) -> None:
    name = await copy(DiskCache(disk, 10_000_000), body)
    restarted = DiskCache(disk, 10_000_000)
    assert await fetched(restarted, name) == body
    await restarted.open()
    await restarted.wait_until_counted()
    assert restarted.bytes == len(body)
    await restarted.aclose()


@pytest.mark.parametrize("counted", [False, True])
async def test_large_copy_of_an_earlier_process_is_hashed_before_use(disk: Disk, *, counted: bool) -> None:
    name = await copy(DiskCache(disk, 10_000_000), LARGE)
    path = disk.root / "cache" / name[:2] / name
    path.write_bytes(bytes(len(LARGE)))  # what a power loss can leave: the size and nothing else
    restarted = DiskCache(disk, 10_000_000)
    if counted:
        await restarted.open()
        await restarted.wait_until_counted()
    assert await fetched(restarted, name) is None
    assert not path.exists()
    await restarted.aclose()


async def test_least_recently_used_copy_is_evicted_first(disk: Disk) -> None:
    cache = DiskCache(disk, 3000)
    names = [await copy(cache, bytes([n]) * 1000) for n in range(3)]
    assert await fetched(cache, names[0]) is not None
    names.append(await copy(cache, bytes([3]) * 1000))
    assert [await fetched(cache, name) is not None for name in names] == [True, False, True, True]
    assert cache.bytes == 3000


async def test_surplus_copies_are_evicted_at_start(disk: Disk) -> None:
    cache = DiskCache(disk, 10_000)
    for n in range(5):
        await copy(cache, bytes([n]) * 1000)
    smaller = DiskCache(disk, 2000)
    await smaller.open()
    await smaller.wait_until_counted()
    assert smaller.bytes == 2000
    assert len(list((disk.root / "cache").rglob("*.png"))) == 2
    await smaller.aclose()


async def test_draft_in_memory_or_larger_than_the_cache_is_not_cached(disk: Disk) -> None:
    cache = DiskCache(disk, 1000)
    assert await fetched(cache, await copy(cache, b"x" * 1001)) is None
    draft = await MemorySpool(1000).begin(3)
    await draft.write(b"abc")
    await cache.put(draft, record_of(b"abc").object_name)
    assert await fetched(cache, record_of(b"abc").object_name) is None
    assert list((disk.root / "partial").iterdir()) == []


async def test_copies_make_room_for_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The timer moves on with each call, so every draft measures the free space anew.
    disk = Disk(tmp_path / "disk", free_bytes_min=1000, timer=itertools.count(step=10).__next__)
    await disk.open()
    cache = DiskCache(disk, 10_000, free_bytes_min=1000)
    for n in range(5):
        await copy(cache, bytes([n]) * 1000)

    limit_disk(monkeypatch, disk.root, "*.png")
    draft = await cache.begin(2000)
    assert len(list((disk.root / "cache").rglob("*.png"))) == 3
    await draft.aclose()
    with pytest.raises(StorageError, match="free_bytes_min"):
        await cache.begin(50_000)
    await disk.aclose()


@pytest.fixture
async def fallback(disk: Disk) -> LocalStore:
    return LocalStore(disk)  # on the same disk


async def test_image_moves_from_the_fallback_without_its_record(disk: Disk, fallback: LocalStore) -> None:
    cache = DiskCache(disk, 10_000)
    record = await put_image(fallback, b"body")
    assert await cache.move_from(fallback, record)
    assert await fallback.find(record.key) is None
    assert await fetched(cache, record.object_name) == b"body"
    assert not list((disk.root / "v1" / "objects").rglob("*.png"))
    await cache.move_from(fallback, record)  # done by another process meanwhile


async def test_newer_image_under_the_same_key_stays_in_the_fallback(disk: Disk, fallback: LocalStore) -> None:
    cache = DiskCache(disk, 10_000)
    uploaded = await put_image(fallback, b"body")
    await fallback.delete_record(uploaded.key)
    newer = await put_image(fallback, b"newer body")
    assert newer.key == uploaded.key
    assert not await cache.move_from(fallback, uploaded)
    assert await fallback.find(newer.key) == newer
    assert await fetched(cache, newer.object_name) is None, "it is in the fallback, and no copy"


async def test_image_is_deleted_where_no_copies_exist(disk: Disk, fallback: LocalStore) -> None:
    record = await put_image(fallback, b"body")
    assert await DiskCache(disk, 0).move_from(fallback, record)
    assert [path for path in disk.root.rglob("*") if path.is_file()] == []


async def test_failing_disk_is_a_miss(disk: Disk) -> None:
    cache = DiskCache(disk, 10_000)
    name = await copy(cache, b"body")
    disk.root.rename(disk.root.with_name("moved"))
    assert await cache.fetch(name, None) is None
    assert (cache.hits, cache.misses) == (0, 1)


async def test_workers_count_every_copy_once_and_stay_within_the_limit(disk: Disk) -> None:
    bodies = [random.Random(n).randbytes(1000) for n in range(40)]
    workers: list[DiskCache] = []

    async def announce(copies: Mapping[str, int]) -> None:
        for worker in workers:
            await worker.count_copies(copies)

    workers += [DiskCache(disk, 8000, share=CacheShare(slot, 2, announce)) for slot in range(2)]
    names = [await copy(workers[n % 2], body) for n, body in enumerate(bodies)]

    def present() -> set[str]:
        return {path.name for path in (disk.root / "cache").rglob("*") if path.is_file()}

    # Every announced copy is counted, whichever worker brought it.
    await until(lambda: len(present()) * 1000 == sum(worker.bytes for worker in workers) <= 16_000)
    # A worker finds the copies of the other share too, and one that starts anew counts its own share alone.
    left = [name for name in names if name in present()]
    for worker in workers:
        assert [await fetched(worker, name) for name in left] == [bodies[names.index(name)] for name in left]
    again = [DiskCache(disk, 8000, share=CacheShare(slot, 2, announce)) for slot in range(2)]
    for worker in again:
        await worker.open()
        await worker.wait_until_counted()
    assert [worker.bytes for worker in again] == [worker.bytes for worker in workers]
    assert present() == set(left), "a worker that counted more would have evicted some"
    for worker in (*workers, *again):
        await worker.aclose()
