"""Derived pictures in the store: uploaded behind the answer, found by other nodes, and gone with their original."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.derived.names import PictureName
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import REMOVED
from imgkeep.core.records import Digest, Format
from imgkeep.derived import picture_store
from imgkeep.derived.picture_cache import PictureCache
from imgkeep.derived.picture_drafts import PictureDraft
from imgkeep.derived.picture_store import PictureStore
from imgkeep.images.object_urls import ObjectUrls
from imgkeep.storage.memory import MemoryBody
from imgkeep.storage.picture_files import PictureFiles
from tests.support.stores import local_store
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgkeep.storage.interfaces import Body, Draft
    from imgkeep.storage.local.store import LocalStore

ONE = Digest("1" * 64)
NAME = PictureName(ONE, "w320", Format.WEBP)
DATA = b"picture" * 100_000


class FakeFiles(PictureFiles):
    """The pictures in a store that may be away."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.is_away = False
        self.may_put = asyncio.Event()
        self.may_put.set()
        self.puts = 0
        self.asked = 0
        self.cut_at: int | None = None
        self.removed: set[Digest] = set()

    async def fetch(self, name: PictureName) -> Body | None:
        self._require()
        data = self.stored.get(name.path)
        return None if data is None else Cut(data, self.cut_at) if self.cut_at else MemoryBody(data)

    async def has(self, name: PictureName) -> bool:
        self._require()
        return name.path in self.stored

    async def put(self, draft: Draft, name: PictureName) -> None:
        self.puts += 1
        self._require()
        await self.may_put.wait()
        self.stored[name.path] = await draft.read(0, draft.size)
        if name.digest in self.removed:
            del self.stored[name.path]
            raise Removed(REMOVED)

    async def count(self, digest: Digest, most: int) -> int:
        self._require()
        return min(most, sum(digest in path for path in self.stored))

    async def delete_all(self, digest: Digest) -> None:
        self._require()
        self.stored = {path: data for path, data in self.stored.items() if digest not in path}

    def _require(self) -> None:
        self.asked += 1
        if self.is_away:
            raise StorageError("the store is away")


class Cut(MemoryBody):
    """A body that breaks off."""

    def __init__(self, data: bytes, cut_at: int | None) -> None:
        super().__init__(data)
        self._cut_at = cut_at

    async def read(self, offset: int, size: int) -> bytes:
        if self._cut_at is not None and offset >= self._cut_at:
            raise StorageError("the body broke off")
        return await super().read(offset, size)


class Node:
    """A node with a cache and the store."""

    def __init__(self, store: LocalStore, files: PictureFiles | None) -> None:
        self.now = 0.0
        self.slept = 0
        self.may_sleep_end = asyncio.Event()
        self.cache = PictureCache(store.disk, 100_000_000)
        self.pictures = PictureStore(files, self.cache, timer=lambda: self.now, sleep=self.sleep)

    async def sleep(self, _seconds: float) -> None:
        self.slept += 1
        await self.may_sleep_end.wait()
        self.may_sleep_end.clear()

    async def make(self, name: PictureName, data: bytes = DATA) -> None:
        draft = await self.cache.begin()
        try:
            draft.write(data, 0)
            await (await self.cache.put(draft, name)).body.aclose()
        finally:
            await draft.aclose()

    async def fetch(self, name: PictureName) -> bytes | None:
        draft = PictureDraft()
        try:
            found = await self.pictures.fetch_into(name, draft)
            data = bytes(draft.read())
        finally:
            await draft.aclose()
        assert found or not data, "the draft is empty again"
        return data if found else None


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = local_store(tmp_path / "data")
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
async def node(local: LocalStore, files: FakeFiles) -> AsyncIterator[Node]:
    node = Node(local, files)
    yield node
    await node.pictures.aclose()


async def test_picture_of_one_node_is_found_by_another(node: Node, local: LocalStore, files: FakeFiles) -> None:
    other = Node(local, files)
    assert await other.fetch(NAME) is None
    await node.make(NAME)
    node.pictures.put_later(NAME)
    node.pictures.put_later(NAME)
    await until(lambda: node.pictures.uploads)
    assert files.puts == 1
    assert await other.fetch(NAME) is None  # it was just told that there is none
    other.now = picture_store.ABSENT_TTL_S + 1.0
    assert await other.fetch(NAME) == DATA
    node.pictures.put_later(NAME)
    await asyncio.sleep(0)
    assert files.puts == 1


async def test_without_the_setting_nothing_is_asked_or_stored(local: LocalStore) -> None:
    node = Node(local, None)
    await node.make(NAME)
    node.pictures.put_later(NAME)
    assert await node.fetch(NAME) is None
    assert not await node.pictures.has(NAME)
    assert await node.pictures.url_of(NAME) is None


async def test_store_that_is_away_is_a_miss_and_gets_the_picture_later(node: Node, files: FakeFiles) -> None:
    files.is_away = True
    assert await node.fetch(NAME) is None
    await node.make(NAME)
    node.pictures.put_later(NAME)
    await until(lambda: node.pictures.failures)
    files.is_away = False
    node.pictures.put_later(NAME)  # not at once again
    assert files.stored == {}
    node.now = picture_store.ABSENT_TTL_S + 1.0
    node.pictures.put_later(NAME)
    await until(lambda: node.pictures.uploads)
    assert files.stored == {NAME.path: DATA}


async def test_picture_that_breaks_off_leaves_the_draft_empty(node: Node, files: FakeFiles) -> None:
    files.stored[NAME.path] = DATA
    files.cut_at = 1
    assert await node.fetch(NAME) is None
    files.cut_at = None
    assert await node.fetch(NAME) == DATA


async def test_picture_that_another_program_has_cut_is_replaced(node: Node, files: FakeFiles) -> None:
    whole = b"RIFF" + (len(DATA) - 8).to_bytes(4, "little") + DATA[8:]
    files.stored[NAME.path] = whole[:100]
    assert await node.fetch(NAME) is None
    await node.make(NAME, whole)
    node.pictures.put_later(NAME)
    await node.pictures.wait_until_uploaded()
    assert files.stored[NAME.path] == whole


async def test_marker_and_vanished_picture_are_not_uploaded(node: Node, files: FakeFiles) -> None:
    await node.make(replace(NAME, negotiated=True), b"")
    node.pictures.put_later(replace(NAME, negotiated=True))
    node.pictures.put_later(PictureName(ONE, "w640", Format.WEBP))
    await until(lambda: not node.pictures._tasks)
    assert (files.puts, node.pictures.uploads) == (0, 0)


async def test_one_original_has_a_limited_number_of_pictures_in_the_store(
    node: Node, files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_store, "PER_ORIGINAL_MAX", 3)
    files.stored[f"v1/derived/{ONE}/w1.webp"] = DATA  # of another node
    for width in range(2, 7):
        name = PictureName(ONE, f"w{width}", Format.WEBP)
        await node.make(name, b"data")
        node.pictures.put_later(name)
        await until(lambda: not node.pictures._tasks)
    assert len(files.stored) == 3


async def test_flood_of_uploads_is_bounded(node: Node, files: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_store, "UPLOADS_WAITING_MAX", 5)
    files.may_put.clear()
    for width in range(1, 10):
        node.pictures.put_later(PictureName(ONE, f"w{width}", Format.WEBP))
    assert node.pictures.failures == 4


async def test_removal_deletes_what_this_process_puts_afterwards(node: Node, files: FakeFiles) -> None:
    files.may_put.clear()
    await node.make(NAME)
    node.pictures.put_later(NAME)
    await until(lambda: files.puts)
    node.cache.blocked = files.removed = {ONE}
    files.is_away = True
    await node.cache.drop(ONE)
    await until(lambda: node.slept)  # the store was away at that moment
    files.stored[f"v1/derived/{ONE}/w1.webp"] = DATA  # carried out after its node gave it up
    files.is_away = False
    files.may_put.set()
    node.may_sleep_end.set()
    await until(lambda: not node.pictures._tasks)
    assert files.stored == {}
    node.pictures.put_later(NAME)
    await until(lambda: not node.pictures._tasks)
    assert files.puts == 1  # there is nothing to put


async def test_deletions_that_wait_for_the_store_hold_no_upload_back(node: Node, files: FakeFiles) -> None:
    digests = [Digest(f"{number:064x}") for number in range(picture_store.UPLOADS_CONCURRENT_MAX)]
    for digest in digests:
        name = PictureName(digest, "w320", Format.WEBP)
        await node.make(name)
        node.pictures.put_later(name)
    await until(lambda: node.pictures.uploads == len(digests))
    files.is_away = True
    node.cache.blocked = set(digests)
    for digest in digests:
        await node.cache.drop(digest)
    await until(lambda: node.slept == len(digests))
    files.is_away = False
    await node.make(NAME)
    node.pictures.put_later(NAME)
    await until(lambda: NAME.path in files.stored)


async def test_undo_ends_the_deletion(node: Node, files: FakeFiles) -> None:
    await node.make(NAME)
    node.pictures.put_later(NAME)
    await until(lambda: node.pictures.uploads)
    files.is_away = True
    node.cache.blocked = {ONE}
    await node.cache.drop(ONE)
    await until(lambda: node.slept)
    node.cache.blocked = frozenset()
    files.is_away = False
    node.may_sleep_end.set()
    await until(lambda: not node.pictures._tasks)
    assert list(files.stored) == [NAME.path]


async def test_client_is_redirected_to_a_picture_that_is_there(node: Node, files: FakeFiles) -> None:
    async def has(_path: str) -> bool:
        return await node.pictures.has(NAME)

    async def presign(path: str, ttl_s: int, _head: bool) -> tuple[str, int]:  # noqa: FBT001 - as it is called
        return f"https://bucket.example/{path}?sig", ttl_s

    node.pictures.urls = ObjectUrls(
        "redirect",
        has_object=has,
        presign=presign,
        public_url=lambda path: f"https://cdn.example/{path}",
        is_public=lambda: True,
        presign_ttl_s=60,
        timer=lambda: node.now,
    )
    assert await node.pictures.url_of(NAME) is None
    assert await node.pictures.url_of(NAME) is None
    assert files.asked == 1
    await node.make(NAME)
    node.pictures.put_later(NAME)
    await until(lambda: node.pictures.uploads)
    url = await node.pictures.url_of(NAME)
    assert url is not None
    assert url.url == f"https://cdn.example/v1/derived/{ONE}/w320.webp"
    node.cache.blocked = {ONE}
    await node.cache.drop(ONE)
    files.is_away = True
    assert await node.pictures.url_of(NAME) is None
