"""The memory cache: bounded, least recently used first out, and empty once an object is removed or altered."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.storage.local.memory_cache import MAPS_MAX, SMALL_BYTES_MAX, CacheEntry, MemoryCache
from imgkeep.storage.local.page_cache import PageCacheReader
from tests.support.program import cannot
from tests.support.stores import local_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BODY = b"x" * 1000


@pytest.fixture
def files(tmp_path: Path) -> PageCacheReader:
    found = PageCacheReader(tmp_path)
    found.open()
    return found


async def run(work: Callable[[Path, int, int], bytearray | None], *arguments: Any) -> bytearray | None:
    return await asyncio.to_thread(work, *arguments)


def held(memory_cache: MemoryCache, root: Path, name: str, body: bytes = BODY) -> CacheEntry:
    """Return an entry as `Disk` makes it: of a file whose bytes were verified."""
    (root / name).write_bytes(body)
    return CacheEntry(memory_cache, name, (root / name).stat(), body)


def test_least_recently_used_bytes_are_evicted(tmp_path: Path, files: PageCacheReader) -> None:
    memory_cache = MemoryCache(3500, files, run)
    handles = [held(memory_cache, tmp_path, f"{n}") for n in range(3)]
    for handle in handles:
        memory_cache.put(handle)
    assert handles[0].read_now() == BODY  # asked for: now the second is the oldest
    memory_cache.put(held(memory_cache, tmp_path, "3"))
    assert [handle.data is None for handle in handles] == [False, True, False]
    assert memory_cache.copied_bytes == 3000
    assert (memory_cache.find("0"), memory_cache.find("1")) == (handles[0], None)


def test_evicted_bytes_are_read_from_the_page_cache(tmp_path: Path, files: PageCacheReader) -> None:
    if not files.is_available:
        cannot("this kernel or file system cannot read without waiting")
    memory_cache = MemoryCache(1500, files, run)
    first, second = held(memory_cache, tmp_path, "1"), held(memory_cache, tmp_path, "2", b"y" * 1000)
    memory_cache.put(first)
    memory_cache.put(second)
    assert first.data is None
    assert bytes(first.read_now() or b"") == BODY
    assert (first.data == BODY, second.data, memory_cache.copied_bytes) == (True, None, 1000)


def test_two_entries_of_one_object_hold_it_once(tmp_path: Path, files: PageCacheReader) -> None:
    memory_cache = MemoryCache(10_000, files, run)
    first, second = held(memory_cache, tmp_path, "1"), held(memory_cache, tmp_path, "1")
    memory_cache.put(first)
    memory_cache.put(second)
    assert (first.data, second.data, memory_cache.copied_bytes) == (None, BODY, 1000)


def test_removed_object_is_not_readable(tmp_path: Path, files: PageCacheReader) -> None:
    memory_cache = MemoryCache(10_000, files, run)
    handle = held(memory_cache, tmp_path, "1")
    memory_cache.put(handle)
    (tmp_path / "1").unlink()
    assert handle.read_now() == BODY, "in memory it is good whatever becomes of the file"
    memory_cache.evict("1")
    assert (handle.read_now(), memory_cache.copied_bytes) == (None, 0)


@pytest.mark.parametrize("alter", ["overwritten", "replaced", "cut", "longer", "touched"])
def test_altered_file_is_not_readable(tmp_path: Path, files: PageCacheReader, alter: str) -> None:
    memory_cache = MemoryCache(0, files, run)
    handle = held(memory_cache, tmp_path, "1")
    memory_cache.put(handle)
    assert handle.data is None, "a memory_cache of no bytes holds nothing"
    path = tmp_path / "1"
    match alter:
        case "overwritten":
            path.write_bytes(b"y" * 1000)
        case "replaced":
            (tmp_path / "new").write_bytes(b"y" * 1000)
            (tmp_path / "new").rename(path)
        case "cut":
            os.truncate(path, 10)
        case "longer":
            path.write_bytes(BODY + b"y")
        case _:
            path.chmod(0o600)
    assert handle.read_now() is None


def test_large_objects_have_a_limit_of_their_own(tmp_path: Path, files: PageCacheReader) -> None:
    memory_cache = MemoryCache(3 * SMALL_BYTES_MAX, files, run)
    large = b"x" * (SMALL_BYTES_MAX + 1)
    handles = [held(memory_cache, tmp_path, f"{n}", large) for n in range(3)]
    small = held(memory_cache, tmp_path, "small")
    for handle in (small, *handles):
        memory_cache.put(handle)
    assert (memory_cache.copied_bytes, memory_cache.mapped_bytes) == (1000, 2 * len(large))
    assert [handle.read_now() is None for handle in handles] == [True, False, False]
    assert small.read_now() == BODY
    memory_cache.evict("2")
    assert (handles[2].read_now(), memory_cache.mapped_bytes) == (None, len(large))


def test_number_of_maps_is_bounded(tmp_path: Path, files: PageCacheReader) -> None:
    memory_cache = MemoryCache(2**40, files, run)
    large = b"x" * (SMALL_BYTES_MAX + 1)
    status = (held(memory_cache, tmp_path, "1", large), (tmp_path / "1").stat())[1]
    for n in range(MAPS_MAX + 10):
        memory_cache.put(CacheEntry(memory_cache, f"{n}", status, large))
    assert memory_cache.mapped_bytes == MAPS_MAX * len(large)


def test_object_larger_than_the_cache_is_not_cached(tmp_path: Path, files: PageCacheReader) -> None:
    memory_cache = MemoryCache(999, files, run)
    handle = held(memory_cache, tmp_path, "1")
    memory_cache.put(handle)
    assert (handle.data, memory_cache.copied_bytes) == (None, 0)


async def test_load_makes_bytes_readable(tmp_path: Path) -> None:
    memory_cache = MemoryCache(
        10_000, PageCacheReader(tmp_path), run
    )  # which was not opened, as on a system that cannot do it
    handle = held(memory_cache, tmp_path, "1")
    handle.data = None
    assert handle.read_now() is None
    loading = handle.load()
    assert loading is not None
    await loading
    assert bytes(handle.read_now() or b"") == BODY
    assert handle.load() is None, "it is there"


@pytest.mark.parametrize("trouble", ["removed", "altered", "a folder"])
async def test_failed_load_raises_nothing(tmp_path: Path, trouble: str) -> None:
    store = local_store(tmp_path, memory_bytes_max=10_000)
    handle = held(store.disk.memory_cache, tmp_path, "1")
    handle.data = None
    (tmp_path / "1").unlink()
    if trouble == "altered":
        (tmp_path / "1").write_bytes(b"y" * 1000)
    elif trouble == "a folder":
        (tmp_path / "1").mkdir()
    loading = handle.load()
    assert loading is not None
    await loading
    assert handle.read_now() is None
    await store.aclose()


async def test_object_removed_during_a_load_is_not_cached(tmp_path: Path) -> None:
    memory_cache: MemoryCache

    async def run_and_remove(work: Callable[[Path, int, int], bytearray | None], *arguments: Any) -> bytearray | None:
        data = await run(work, *arguments)
        memory_cache.remove("1")
        return data

    memory_cache = MemoryCache(10_000, PageCacheReader(tmp_path), run_and_remove)
    handle = held(memory_cache, tmp_path, "1")
    handle.data = None
    loading = handle.load()
    assert loading is not None
    await loading
    assert (handle.read_now(), memory_cache.copied_bytes) == (None, 0)


def test_load_refuses_bytes_that_would_not_stay(tmp_path: Path) -> None:
    handle = held(MemoryCache(10, PageCacheReader(tmp_path), run), tmp_path, "1")
    handle.data = None
    assert handle.load() is None
    large = held(MemoryCache(2**20, PageCacheReader(tmp_path), run), tmp_path, "2", b"x" * (SMALL_BYTES_MAX + 1))
    large.data = None
    assert large.load() is None
