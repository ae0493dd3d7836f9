"""The cache of derived pictures: found, counted, evicted, and gone with their original."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.derived.derive_policy import DEFAULT_WIDTHS
from imgkeep.core.derived.names import PictureName
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.records import Digest, Format
from imgkeep.derived import picture_cache
from imgkeep.derived.picture_cache import PER_ORIGINAL_MAX, PictureCache
from imgkeep.storage.cache_index import CacheShare
from imgkeep.storage.local.body import LocalBody
from imgkeep.storage.local.disk import Disk
from imgkeep.storage.local.opened_file import OpenedFile
from tests.support.stores import limit_disk, read_all
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from imgkeep.derived.picture_cache import FoundPicture
    from imgkeep.storage.local.memory_cache import CacheEntry

ONE = Digest("1" * 64)
TWO = Digest("2" * 64)
LARGE = bytes(range(256)) * 400
"""More than is copied into the memory cache."""


def name_of(digest: Digest = ONE, width: int = 320) -> PictureName:
    return PictureName(digest, f"w{width}", Format.WEBP)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path / "disk", memory_bytes_max=1_000_000)
    await disk.open()
    yield disk
    await disk.aclose()


async def put(cache: PictureCache, name: PictureName, data: bytes) -> FoundPicture:
    draft = await cache.begin()
    try:
        os.write(draft.descriptor, data)
        return await cache.put(draft, name)
    finally:
        await draft.aclose()


async def make(cache: PictureCache, name: PictureName, data: bytes = b"picture") -> None:
    await (await put(cache, name, data)).body.aclose()


async def found(cache: PictureCache, name: PictureName) -> bytes | None:
    picture = await cache.find(name)
    if picture is None:
        return None
    try:
        return await read_all(picture.body)
    finally:
        await picture.body.aclose()


def files(disk: Disk) -> list[str]:
    return sorted(path.name for path in (disk.root / "derived").rglob("*.webp"))


@pytest.mark.parametrize("data", [b"small", LARGE, b""], ids=["small", "large", "marker"])
async def test_picture_survives_a_restart(disk: Disk, data: bytes) -> None:
    cache = PictureCache(disk, 1_000_000)
    name = replace(name_of(), negotiated=not data)
    assert await found(cache, name) is None
    await make(cache, name, data)
    assert (disk.root / "derived" / "11" / ONE / name.file_name).read_bytes() == data
    restarted = PictureCache(disk, 1_000_000)
    await restarted.open()
    await restarted.wait_until_counted()
    assert restarted.bytes == len(data)
    assert await found(restarted, name) == data
    assert (restarted.hits, restarted.misses) == (1, 0)
    assert not list((disk.root / "partial").iterdir())
    await restarted.aclose()


@pytest.mark.parametrize("size", [0, 100, 90_000])
async def test_picture_that_was_cut_is_made_again(disk: Disk, size: int) -> None:
    data = b"RIFF" + (len(LARGE) - 8).to_bytes(4, "little") + LARGE[8:]
    await make(PictureCache(disk, 1_000_000), name_of(), data)
    os.truncate(disk.root / "derived" / "11" / ONE / "w320.webp", size)
    disk.memory_cache.evict(f"derived/11/{ONE}/w320.webp")
    restarted = PictureCache(disk, 1_000_000)
    assert [await found(restarted, name_of()) for _ in range(2)] == [None, None]
    await make(restarted, name_of(), data)
    assert await found(restarted, name_of()) == data


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
async def test_warm_picture_has_a_cache_entry_and_the_tag_of_its_bytes(disk: Disk, data: bytes) -> None:
    cache = PictureCache(disk, 1_000_000)
    for picture in (await put(cache, name_of(), data), await cache.find(name_of()), await cache.find(name_of())):
        assert picture is not None
        assert picture.etag == f'"{sha256(data).hexdigest()[:32]}"'
        assert picture.body.cache_entry is not None
        assert bytes(picture.body.cache_entry.read_now() or b"") == data
        await picture.body.aclose()


async def test_picture_made_again_has_its_own_tag(disk: Disk) -> None:
    cache = PictureCache(disk, 1_000_000)
    for data in (b"one", LARGE, b"two", LARGE[1:]):
        await make(cache, name_of(), data)
        picture = await cache.find(name_of())
        assert picture is not None
        assert await read_all(picture.body) == data
        assert picture.etag == f'"{sha256(data).hexdigest()[:32]}"'
        await picture.body.aclose()
    assert cache.bytes == len(LARGE) - 1


async def test_least_recently_used_picture_is_evicted_first(disk: Disk) -> None:
    cache = PictureCache(disk, 3000)
    for width in (1, 2, 3):
        await make(cache, name_of(width=width), bytes(1000))
    assert await found(cache, name_of(width=1)) is not None
    await make(cache, name_of(TWO), bytes(1000))
    assert [await found(cache, name_of(width=width)) is not None for width in (1, 2, 3)] == [True, False, True]
    assert cache.bytes == 3000


async def test_ten_thousand_sizes_of_one_image_evict_no_picture_of_another(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_cache, "PER_ORIGINAL_MAX", 3)
    cache = PictureCache(disk, 1_000_000)
    await make(cache, name_of(TWO), b"of another image")
    for width in range(1, 11):
        await make(cache, name_of(width=width))
    assert files(disk) == ["w10.webp", "w320.webp", "w8.webp", "w9.webp"]
    assert await found(cache, name_of(width=8)) is not None
    await make(cache, name_of(width=11))
    assert files(disk) == ["w10.webp", "w11.webp", "w320.webp", "w8.webp"]
    assert len(DEFAULT_WIDTHS) * 3 < PER_ORIGINAL_MAX  # the ladder in three formats


async def test_surplus_pictures_are_evicted_at_start(disk: Disk) -> None:
    cache = PictureCache(disk, 10_000)
    for digest in (ONE, TWO):
        for width in (1, 2):
            await make(cache, name_of(digest, width), bytes(1000))
    smaller = PictureCache(disk, 1000)
    await smaller.open()
    await smaller.wait_until_counted()
    assert smaller.bytes == 1000
    assert len(files(disk)) == 1
    assert len(list((disk.root / "derived").glob("*/*"))) == 1  # no empty folder is left
    await smaller.aclose()


async def test_without_a_cache_a_picture_is_answered_from_memory(disk: Disk) -> None:
    cache = PictureCache(disk, 0)
    picture = await put(cache, name_of(), b"small")
    assert await read_all(picture.body) == b"small"
    assert picture.body.cache_entry is None
    await picture.body.aclose()
    assert await found(cache, name_of()) == b"small"  # for the next request
    await cache.drop(ONE)
    assert await found(cache, name_of()) is None
    assert not (disk.root / "derived").exists()


async def test_full_disk_fails_no_picture(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PictureCache(disk, 1_000_000)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr("imgkeep.storage.local.atomic_files.write_all", fail)
    picture = await put(cache, name_of(), LARGE)
    assert await read_all(picture.body) == LARGE
    assert picture.etag == f'"{sha256(LARGE).hexdigest()[:32]}"'
    await picture.body.aclose()
    assert files(disk) == []
    assert not list((disk.root / "partial").iterdir())
    assert cache.bytes == 0


async def test_memory_for_pictures_that_no_disk_takes_is_limited(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_cache, "MEMORY_BYTES_MAX", 150)
    cache = PictureCache(disk, 0)
    reader = await put(cache, name_of(), bytes(100))
    with pytest.raises(StorageError, match="used up"):
        await put(cache, name_of(width=2), bytes(100))
    await reader.body.aclose()
    await make(cache, name_of(width=2), bytes(100))


async def test_folder_that_is_gone_is_a_miss(disk: Disk) -> None:
    cache = PictureCache(disk, 1_000_000)
    await make(cache, name_of(), LARGE)
    disk.root.rename(disk.root.with_name("unmounted"))
    assert await found(cache, name_of()) is None
    await make(cache, name_of(width=2), LARGE)


async def test_bytes_do_not_change_after_a_derive_process_has_finished(disk: Disk) -> None:
    # One that a hostile original has taken over still has the file.
    cache = PictureCache(disk, 0)
    draft = await cache.begin()
    os.write(draft.descriptor, LARGE)
    theirs = os.dup(draft.descriptor)
    picture = await cache.put(draft, name_of())
    await draft.aclose()
    for attack in (lambda: os.ftruncate(theirs, 0), lambda: os.pwrite(theirs, b"evil", 0)):
        with pytest.raises(OSError, match="not permitted"):
            attack()
    os.close(theirs)
    assert await read_all(picture.body) == LARGE
    await picture.body.aclose()


async def test_derive_process_that_makes_its_file_huge_or_seals_it_harms_one_picture(disk: Disk) -> None:
    cache = PictureCache(disk, 1_000_000)
    huge, sealed = await cache.begin(), await cache.begin()
    os.ftruncate(huge.descriptor, 2**40)
    with pytest.raises(StorageError, match="too large"):
        await cache.put(huge, name_of())
    os.write(sealed.descriptor, LARGE)
    fcntl.fcntl(sealed.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK)
    with pytest.raises(StorageError, match="sealed"):
        sealed.clear()
    picture = await cache.put(sealed, name_of())
    assert await read_all(picture.body) == LARGE
    for each in (picture.body, huge, sealed):
        await each.aclose()


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
async def test_pictures_go_with_their_original(disk: Disk, data: bytes) -> None:
    cache = PictureCache(disk, 1_000_000)
    await make(cache, name_of(), data)
    await make(cache, name_of(width=2), data)
    await make(cache, name_of(TWO), data)
    warm = await cache.find(name_of())
    assert warm is not None
    entry = warm.body.cache_entry
    assert entry is not None
    cache.blocked = {ONE}
    await cache.drop(ONE)
    assert entry.read_now() is None  # what the response cache holds
    assert await found(cache, name_of()) is None
    assert await found(cache, name_of(TWO)) == data
    assert files(disk) == ["w320.webp"]
    assert cache.bytes == len(data)
    with pytest.raises(Removed):
        await put(cache, name_of(), data)
    assert files(disk) == ["w320.webp"]
    cache.blocked = frozenset()  # an undo
    await make(cache, name_of(), data)
    await warm.body.aclose()


async def test_reader_that_opens_a_picture_during_its_removal_leaves_nothing_in_memory(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker, cache = PictureCache(disk, 1_000_000), PictureCache(disk, 1_000_000)
    await make(maker, name_of())  # as another worker
    disk.memory_cache.evict("derived/11/" + ONE + "/w320.webp")
    opened, removed = asyncio.Event(), asyncio.Event()
    run = disk.run

    async def run_late(work: object, *args: object) -> object:
        result = await run(work, *args)  # type: ignore[arg-type, var-annotated]  # whatever work
        if getattr(work, "__name__", "") == "_open_file":
            opened.set()
            await removed.wait()
        return result

    monkeypatch.setattr(disk, "run", run_late)
    reader = asyncio.create_task(cache.find(name_of()))
    await opened.wait()
    cache.blocked = {ONE}
    await cache.drop(ONE)
    removed.set()
    assert await reader is None
    assert disk.memory_cache.copied_bytes == 0


async def test_cached_response_that_reads_a_picture_during_its_removal_is_empty_afterwards(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PictureCache(disk, 1_000_000)
    entry = await entry_in(cache, name_of())
    use_before(disk, monkeypatch, "rmtree", entry)
    cache.blocked = {ONE}
    await cache.drop(ONE)
    assert entry.read_now() is None
    assert disk.memory_cache.copied_bytes == 0


async def test_cached_response_that_reads_a_picture_during_its_eviction_is_empty_afterwards(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PictureCache(disk, 10)
    entry = await entry_in(cache, name_of())
    use_before(disk, monkeypatch, "_delete_all", entry)
    await make(cache, name_of(TWO))
    assert files(disk) == ["w320.webp"]
    assert entry.read_now() is None, "no removal would find it"


async def test_picture_that_is_found_during_its_removal_is_counted_no_more(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PictureCache(disk, 1_000_000)
    await make(cache, name_of())
    run = disk.run

    async def run_late(what: object, *args: object) -> object:
        if getattr(what, "__name__", "") == "rmtree":
            assert await cache.find(name_of()) is None
            assert cache.bytes, "it was there"
        return await run(what, *args)  # type: ignore[arg-type]  # whatever work

    monkeypatch.setattr(disk, "run", run_late)
    cache.blocked = {ONE}
    await cache.drop(ONE)
    assert (cache.bytes, disk.memory_cache.copied_bytes) == (0, 0)


async def entry_in(cache: PictureCache, name: PictureName) -> CacheEntry:
    """Make a picture, and return what a cached response holds of it."""
    await make(cache, name)
    warm = await cache.find(name)
    assert warm is not None
    await warm.body.aclose()
    assert warm.body.cache_entry is not None
    return warm.body.cache_entry


def use_before(disk: Disk, monkeypatch: pytest.MonkeyPatch, work: str, entry: CacheEntry) -> None:
    """Have a cached response read its picture when the disk is about to do some work."""
    run = disk.run

    async def run_late(what: object, *args: object) -> object:
        if getattr(what, "__name__", "") == work:
            assert entry.data is None
            await (entry.load() or asyncio.sleep(0))
            assert entry.read_now() == b"picture"
        return await run(what, *args)  # type: ignore[arg-type]  # whatever work

    monkeypatch.setattr(disk, "run", run_late)


async def test_request_that_ends_while_a_picture_makes_room_leaves_no_open_file(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(PictureCache(disk, 1_000_000), name_of(), LARGE)
    cache = PictureCache(disk, len(LARGE))
    await make(cache, name_of(TWO), LARGE)
    bodies: list[LocalBody] = []
    run = disk.run

    async def end(what: object, *args: object) -> object:
        if getattr(what, "__name__", "") == "_delete_all":
            raise asyncio.CancelledError
        done = await run(what, *args)  # type: ignore[arg-type, var-annotated]  # whatever work
        if isinstance(done, OpenedFile) and isinstance(done.body, LocalBody):
            bodies.append(done.body)
        return done

    monkeypatch.setattr(disk, "run", end)
    with pytest.raises(asyncio.CancelledError):
        await cache.find(name_of())
    [body] = bodies
    assert body.descriptor == -1


async def test_workers_share_their_pictures_and_count_each_once(disk: Disk) -> None:
    async def announce(pictures: Mapping[str, int]) -> None:
        await two.count_announced(pictures)

    one, two = (PictureCache(disk, 10_000, share=CacheShare(slot, 2, announce)) for slot in range(2))
    await make(one, name_of(ONE), bytes(100))  # 0x11 is odd: the second one counts it
    assert await found(two, name_of(ONE)) == bytes(100)
    await until(lambda: two.bytes == 100)
    assert one.bytes == 0
    picture = await one.find(name_of(ONE))
    assert picture is not None
    for cache in (one, two):  # as a notice tells both
        cache.blocked = {ONE}
        await cache.drop(ONE)
    entry = picture.body.cache_entry
    assert entry is not None
    assert entry.read_now() is None
    assert two.bytes == 0
    for cache in (one, two):
        await cache.aclose()


async def test_pictures_make_room_for_originals(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PictureCache(disk, 1_000_000, free_bytes_min=1000)
    monkeypatch.setattr(disk._free_space, "_bytes_min", 1000)  # as the disk has it by its own constructor
    for width in range(1, 6):
        await make(cache, name_of(width=width), bytes(1000))

    limit_disk(monkeypatch, disk.root, "*.webp")
    monkeypatch.setattr(disk._free_space, "_measured_at", float("-inf"))
    draft = await disk.begin(2000)
    assert len(files(disk)) == 3
    await draft.aclose()
