"""Cache entries of a local store whose files are truncated, replaced and read under several keys."""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.layout import object_path
from imgkeep.core.records import Digest
from tests.support.images import png_of
from tests.support.stores import local_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgkeep.storage.local.memory_cache import CacheEntry
    from imgkeep.storage.local.store import LocalStore

SMALL = png_of(20_000)
LARGE = png_of(3_000_000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    opened = local_store(tmp_path, memory_bytes_max=10_000_000)
    await opened.open()
    yield opened
    await opened.aclose()


def laid(store: LocalStore, body: bytes) -> str:
    """Put an object where the store finds it; return its name."""
    name = f"{sha256(body).hexdigest()}.png"
    path = store.disk.root / object_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return name


async def cache_entry(store: LocalStore, name: str) -> CacheEntry:
    body = await store.fetch(name, None)
    assert body is not None
    await body.aclose()
    assert body.cache_entry is not None
    return body.cache_entry


@pytest.mark.parametrize("size", [2_999_990, 1_000_000, 0], ids=["within the last page", "by pages", "to nothing"])
async def test_truncated_mapped_file_is_not_readable(store: LocalStore, size: int) -> None:
    name = laid(store, LARGE)
    handle = await cache_entry(store, name)
    assert handle.read_now() is not None
    os.truncate(store.disk.root / object_path(name), size)
    assert handle.read_now() is None
    assert store.disk.memory_cache.mapped_bytes == 0


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_concurrent_readers_share_one_entry(store: LocalStore, body: bytes) -> None:
    name = laid(store, body)
    first, second = await asyncio.gather(cache_entry(store, name), cache_entry(store, name))
    third = await cache_entry(store, name)
    for _ in range(2):
        assert [bytes(handle.read_now() or b"") == body for handle in (first, second, third)] == [True] * 3
    assert store.disk.memory_cache.copied_bytes + store.disk.memory_cache.mapped_bytes == len(body)


async def test_evicted_entry_finds_the_current_one(store: LocalStore) -> None:
    store.disk._page_cache.is_available = False  # so that there is no other way
    name = laid(store, SMALL)
    first = await cache_entry(store, name)
    store.disk.memory_cache.evict(object_path(name))
    second = await cache_entry(store, name)
    for _ in range(2):
        assert (first.read_now(), second.read_now()) == (SMALL, SMALL)
    await store.delete_object(Digest(name.partition(".")[0]))
    assert (first.read_now(), second.read_now()) == (None, None)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_replaced_file_gets_an_entry_of_its_own(store: LocalStore, body: bytes) -> None:
    if body is SMALL:
        store.disk._page_cache.is_available = False  # so that nothing but memory can give it
    name = laid(store, body)
    first = await cache_entry(store, name)
    store.disk.memory_cache.evict(object_path(name))
    path = store.disk.root / object_path(name)
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # the kernel's clock for files ticks every few milliseconds
        path.unlink()
        laid(store, body)
    second = await cache_entry(store, name)
    assert (first.read_now() is None, second.read_now() is None) == (True, False)


async def test_large_object_is_mapped_on_local_file_systems_only(store: LocalStore) -> None:
    name = laid(store, LARGE)
    for is_available in (False, store.disk._page_cache.is_available):
        store.disk._page_cache.is_available = is_available
        body = await store.fetch(name, len(LARGE))
        assert body is not None
        assert (body.cache_entry is not None) == is_available
        await body.aclose()
