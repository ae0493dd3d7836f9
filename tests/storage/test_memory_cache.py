"""What is at hand: bounded, the least recently asked for leaving first, and empty once it is removed or altered."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from imgkeep.storage.local.memory_cache import MAPS_MAX, SMALL_BYTES_MAX, Held, Shelf
from imgkeep.storage.local.page_cache import CachedFiles
from imgkeep.storage.local.store import LocalStore

from tests.support.program import cannot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BODY = b"x" * 1000


@pytest.fixture
def files(tmp_path: Path) -> CachedFiles:
    found = CachedFiles(tmp_path)
    found.open()
    return found


async def run(work: Callable[[Path, int, int], bytearray | None], *arguments: Any) -> bytearray | None:
    return await asyncio.to_thread(work, *arguments)


def held(shelf: Shelf, root: Path, name: str, body: bytes = BODY) -> Held:
    """Return a handle as `LocalStore` makes it: on a file that was read and found good."""
    (root / name).write_bytes(body)
    return Held(shelf, name, (root / name).stat(), body)


def test_bytes_in_memory_are_bounded_and_the_least_recently_asked_for_leave(tmp_path: Path, files: CachedFiles) -> None:
    shelf = Shelf(3500, files, run)
    handles = [held(shelf, tmp_path, f"{n}") for n in range(3)]
    for handle in handles:
        shelf.put(handle)
    assert handles[0].whole() == BODY  # asked for: now the second is the oldest
    shelf.put(held(shelf, tmp_path, "3"))
    assert [handle.data is None for handle in handles] == [False, True, False]
    assert shelf.copied_bytes == 3000
    assert (shelf.find("0"), shelf.find("1")) == (handles[0], None)


def test_what_left_memory_comes_back_from_the_kernels_cache(tmp_path: Path, files: CachedFiles) -> None:
    if not files.works:
        cannot("this kernel or file system cannot read without waiting")
    shelf = Shelf(1500, files, run)
    first, second = held(shelf, tmp_path, "1"), held(shelf, tmp_path, "2", b"y" * 1000)
    shelf.put(first)
    shelf.put(second)
    assert first.data is None
    assert bytes(first.whole() or b"") == BODY
    assert (first.data == BODY, second.data, shelf.copied_bytes) == (True, None, 1000)


def test_two_handles_of_one_object_hold_it_once(tmp_path: Path, files: CachedFiles) -> None:
    shelf = Shelf(10_000, files, run)
    first, second = held(shelf, tmp_path, "1"), held(shelf, tmp_path, "1")
    shelf.put(first)
    shelf.put(second)
    assert (first.data, second.data, shelf.copied_bytes) == (None, BODY, 1000)


def test_what_is_dropped_and_removed_is_not_given_any_more(tmp_path: Path, files: CachedFiles) -> None:
    shelf = Shelf(10_000, files, run)
    handle = held(shelf, tmp_path, "1")
    shelf.put(handle)
    (tmp_path / "1").unlink()
    assert handle.whole() == BODY, "in memory it is good whatever becomes of the file"
    shelf.drop("1")
    assert (handle.whole(), shelf.copied_bytes) == (None, 0)


@pytest.mark.parametrize("alter", ["overwritten", "replaced", "cut", "longer", "touched"])
def test_a_file_that_was_altered_is_not_given(tmp_path: Path, files: CachedFiles, alter: str) -> None:
    shelf = Shelf(0, files, run)
    handle = held(shelf, tmp_path, "1")
    shelf.put(handle)
    assert handle.data is None, "a shelf of no bytes holds nothing"
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
    assert handle.whole() is None


def test_large_objects_are_held_apart_from_small_ones(tmp_path: Path, files: CachedFiles) -> None:
    shelf = Shelf(3 * SMALL_BYTES_MAX, files, run)
    large = b"x" * (SMALL_BYTES_MAX + 1)
    handles = [held(shelf, tmp_path, f"{n}", large) for n in range(3)]
    small = held(shelf, tmp_path, "small")
    for handle in (small, *handles):
        shelf.put(handle)
    assert (shelf.copied_bytes, shelf.mapped_bytes) == (1000, 2 * len(large))
    assert [handle.whole() is None for handle in handles] == [True, False, False]
    assert small.whole() == BODY
    shelf.drop("2")
    assert (handles[2].whole(), shelf.mapped_bytes) == (None, len(large))


def test_maps_are_bounded_by_their_number_too(tmp_path: Path, files: CachedFiles) -> None:
    shelf = Shelf(2**40, files, run)
    large = b"x" * (SMALL_BYTES_MAX + 1)
    status = (held(shelf, tmp_path, "1", large), (tmp_path / "1").stat())[1]
    for n in range(MAPS_MAX + 10):
        shelf.put(Held(shelf, f"{n}", status, large))
    assert shelf.mapped_bytes == MAPS_MAX * len(large)


def test_what_is_larger_than_the_shelf_is_not_held(tmp_path: Path, files: CachedFiles) -> None:
    shelf = Shelf(999, files, run)
    handle = held(shelf, tmp_path, "1")
    shelf.put(handle)
    assert (handle.data, shelf.copied_bytes) == (None, 0)


async def test_what_is_not_at_hand_is_brought_and_then_is(tmp_path: Path) -> None:
    shelf = Shelf(10_000, CachedFiles(tmp_path), run)  # which was not opened, as on a system that cannot do it
    handle = held(shelf, tmp_path, "1")
    handle.data = None
    assert handle.whole() is None
    loading = handle.load()
    assert loading is not None
    await loading
    assert bytes(handle.whole() or b"") == BODY
    assert handle.load() is None, "it is there"


@pytest.mark.parametrize("trouble", ["removed", "altered", "a folder"])
async def test_what_cannot_be_brought_stays_away_and_raises_nothing(tmp_path: Path, trouble: str) -> None:
    store = LocalStore(tmp_path, hot_bytes_max=10_000)
    handle = held(store.shelf, tmp_path, "1")
    handle.data = None
    (tmp_path / "1").unlink()
    if trouble == "altered":
        (tmp_path / "1").write_bytes(b"y" * 1000)
    elif trouble == "a folder":
        (tmp_path / "1").mkdir()
    loading = handle.load()
    assert loading is not None
    await loading
    assert handle.whole() is None
    await store.aclose()


async def test_what_is_removed_while_it_is_brought_does_not_come(tmp_path: Path) -> None:
    shelf: Shelf

    async def run_and_remove(work: Callable[[Path, int, int], bytearray | None], *arguments: Any) -> bytearray | None:
        data = await run(work, *arguments)
        shelf.forget("1")
        return data

    shelf = Shelf(10_000, CachedFiles(tmp_path), run_and_remove)
    handle = held(shelf, tmp_path, "1")
    handle.data = None
    loading = handle.load()
    assert loading is not None
    await loading
    assert (handle.whole(), shelf.copied_bytes) == (None, 0)


def test_nothing_is_brought_that_would_not_stay(tmp_path: Path) -> None:
    handle = held(Shelf(10, CachedFiles(tmp_path), run), tmp_path, "1")
    handle.data = None
    assert handle.load() is None
    large = held(Shelf(2**20, CachedFiles(tmp_path), run), tmp_path, "2", b"x" * (SMALL_BYTES_MAX + 1))
    large.data = None
    assert large.load() is None
