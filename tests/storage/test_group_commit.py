"""Group commit: each image whole or not at all, durable before the caller returns, faults of one its own."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Conflict, StorageError
from imgkeep.core.layout import object_path, record_path
from imgkeep.storage.local.group_commit import GROUP_MAX, SYNCED_BY_FILE_MAX
from tests.support.program import cannot
from tests.support.stores import local_store, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from imgkeep.core.records import Record
    from imgkeep.storage.local.group_commit import PendingImage
    from imgkeep.storage.local.store import LocalStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = local_store(tmp_path / "store")
    await store.open()
    if not store._group_commit.is_available:
        cannot("this kernel or file system has no files without names")
    yield store
    await store.aclose()


def body_of(number: int) -> bytes:
    return random.Random(number).randbytes(1000)


async def put(store: LocalStore, number: int, *, name: str | None = None) -> Record:
    draft = await store.disk.begin(None)
    await draft.write(body_of(number))
    try:
        return await store.put(draft, record_of(body_of(number), name=name or f"{number:08x}"))
    finally:
        await draft.aclose()


async def groups_of(store: LocalStore) -> list[int]:
    """Note the size of each group from now on."""
    sizes: list[int] = []
    keep = store._group_commit._store

    def noting(group: Sequence[PendingImage]) -> None:
        sizes.append(len(group))
        keep(group)

    store._group_commit._store = noting  # type: ignore[method-assign]
    return sizes


@pytest.mark.parametrize("number", [1, SYNCED_BY_FILE_MAX, SYNCED_BY_FILE_MAX + 1, GROUP_MAX * 2 + 5])
async def test_concurrent_images_are_stored_in_groups(store: LocalStore, number: int) -> None:
    sizes = await groups_of(store)
    records = await asyncio.gather(*(put(store, n) for n in range(number)))
    assert sum(sizes) == number
    assert max(sizes) <= GROUP_MAX
    for n, record in enumerate(records):
        assert (store.disk.root / object_path(record.object_name)).read_bytes() == body_of(n)
        assert await store.find(record.key) == record
    assert list((store.disk.root / "partial").iterdir()) == []


async def test_same_bytes_under_many_links_are_one_object(store: LocalStore) -> None:
    records = await asyncio.gather(*(put(store, 1, name=f"{n:08x}") for n in range(10)))
    assert len({record.object_name for record in records}) == 1
    assert len(list((store.disk.root / "v1" / "records").rglob("*.json"))) == 10
    assert list((store.disk.root / "partial").iterdir()) == []


async def test_damaged_object_is_replaced(store: LocalStore) -> None:
    record = record_of(body_of(1))
    path = store.disk.root / object_path(record.object_name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damage")
    await put(store, 1)
    assert path.read_bytes() == body_of(1)


async def test_conflict_of_one_image_leaves_the_others_alone(store: LocalStore) -> None:
    first = await put(store, 1, name="aaaaaaaa")
    results = await asyncio.gather(
        put(store, 2, name="aaaaaaaa"), *(put(store, n) for n in range(10, 20)), return_exceptions=True
    )
    assert isinstance(results[0], Conflict)
    assert not any(isinstance(result, BaseException) for result in results[1:])
    assert await store.find(first.key) == first


async def test_fault_of_one_image_leaves_the_others_alone(store: LocalStore) -> None:
    record = record_of(body_of(1), name="aaaaaaaa")
    (store.disk.root / record_path(record.key)).mkdir(parents=True)
    results = await asyncio.gather(
        put(store, 1, name="aaaaaaaa"), *(put(store, n) for n in range(10, 20)), return_exceptions=True
    )
    assert isinstance(results[0], StorageError)
    assert not any(isinstance(result, BaseException) for result in results[1:])


async def test_failed_sync_fails_the_group(store: LocalStore) -> None:
    store._group_commit._syncfs = lambda _: -1
    results = await asyncio.gather(*(put(store, n) for n in range(20)), return_exceptions=True)
    alone = [result for result in results if not isinstance(result, BaseException)]
    # The first ones are stored before the others arrive, and are synced file by file.
    assert len(alone) <= SYNCED_BY_FILE_MAX
    assert all(isinstance(result, StorageError) for result in results if result not in alone)
    assert len(list((store.disk.root / "v1" / "records").rglob("*.json"))) == len(alone)
    assert list((store.disk.root / "partial").iterdir()) == []


async def test_cancelled_put_leaves_its_group_alone(store: LocalStore) -> None:
    puts = [asyncio.create_task(put(store, n)) for n in range(8)]
    while not store._group_commit._waiting and not store._group_commit._task:  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0)
    puts[0].cancel()
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert not any(isinstance(result, BaseException) for result in results[1:])


async def test_images_are_stored_one_by_one_without_unnamed_files(store: LocalStore) -> None:
    store._group_commit.is_available = False
    records = await asyncio.gather(*(put(store, n) for n in range(6)))
    for record in records:
        assert await store.find(record.key) == record
    assert list((store.disk.root / "partial").iterdir()) == []
