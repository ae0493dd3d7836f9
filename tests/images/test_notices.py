"""Which changes a process tells the others, and in which order a removal tells them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import block_path
from imgkeep.images.record_sharing import RecordSharing
from imgkeep.storage.bucket.errors import BucketError
from tests.support.bucket_nodes import ServingNode
from tests.support.fakes import World
from tests.support.images import make_image
from tests.support.memory_bucket import MemoryBucket
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from imgkeep.core.records import Digest, Key

BODY = b"an image"
A = record_of(BODY, name="a")
URL = "https://images.example/picture.png"


@dataclass
class Told:
    """The other processes, which note what they are told."""

    notices: list[tuple[str, ...]] = field(default_factory=list)
    fault: StorageError | None = None
    is_away: bool = False
    bucket: MemoryBucket | None = None
    alone: list[str] = field(default_factory=list)

    async def notify(
        self,
        *,
        blocked: Collection[Digest] = (),
        changed: Collection[Key] = (),
        unblocked: Collection[Digest] = (),
    ) -> None:
        if self.bucket is not None and blocked:
            assert all(block_path(digest) in self.bucket.objects for digest in blocked), "the block comes first"
        self.notices.append((*blocked, *changed, *unblocked))
        if self.fault is not None:
            raise self.fault

    @asynccontextmanager
    async def exclusively(self, digest: Digest) -> AsyncIterator[None]:
        if self.is_away:
            raise StorageError("the database is not reachable")
        self.alone.append(digest)
        yield
        self.alone.remove(digest)


@pytest.fixture
def told() -> Told:
    return Told()


async def test_first_image_of_a_key_is_told_to_none(told: Told) -> None:
    world = World(sharing=RecordSharing(notifier=told))
    world.origin.gives(URL, make_image())
    assert (await world.get(URL))[0] == "stored"
    assert told.notices == [], "a miss costs no request more"


async def test_record_that_others_may_know_is_told_though_this_process_does_not(told: Told) -> None:
    world = World(sharing=RecordSharing(notifier=told))
    await world.image_service.changes.note_stored(A)
    assert told.notices == [(A.key,)]
    assert world.image_index.calls["flush"] == 1, "the others look the record up there"
    await world.image_service.changes.note_stored(A)
    assert len(told.notices) == 1, "nothing has changed"


async def test_replaced_record_of_a_first_fill_is_told(told: Told) -> None:
    world = World(sharing=RecordSharing(notifier=told))
    world.image_service.records.put(record_of(b"older", name="a"))
    await world.image_service.changes.note_stored(A, is_first=True)
    assert told.notices == [(A.key,)]


async def test_removal_that_cannot_be_told_does_nothing(told: Told) -> None:
    node = ServingNode("one", MemoryBucket(), notifier=told)
    await node.fill(BODY, name="a")
    told.is_away = True
    before = dict(node.client.bucket.objects)
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    assert node.client.bucket.objects == before
    assert await node.shows(A.key)


async def test_removal_is_told_after_its_block_and_before_it_is_acknowledged(told: Told) -> None:
    node = ServingNode("one", MemoryBucket(), notifier=told)
    told.bucket = node.client.bucket
    await node.fill(BODY, name="a")
    assert await node.remover.remove_key(A.key)
    assert told.notices == [(A.digest,)]
    assert told.alone == []
    told.notices.clear()
    assert await node.remover.restore_key(A.key) is not None
    assert told.notices == [(A.key, A.digest)]


async def test_removal_that_was_not_told_to_all_is_completed_by_its_repetition(told: Told) -> None:
    node = ServingNode("one", MemoryBucket(), notifier=told)
    await node.fill(BODY, name="a")
    told.fault = StorageError("the database went away")
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    assert not await node.shows(A.key)
    told.fault = None
    assert await node.remover.remove_key(A.key)
    assert told.notices == [(A.digest,)] * 2


async def test_block_that_the_store_does_not_take_is_taken_back_in_the_database(told: Told) -> None:
    node = ServingNode("one", MemoryBucket(), notifier=told)
    await node.fill(BODY, name="a")
    node.removals.digests.add(A.digest)  # as `ImageIndex.block` does in a shared database
    node.client.faults["PUT", block_path(A.digest)] = BucketError("the bucket is full", general=False)
    with pytest.raises(StorageError):
        await node.remover.remove_key(A.key)
    assert node.removals.digests == set()
    assert told.notices == []
    assert await node.shows(A.key)


async def test_bytes_that_the_database_calls_blocked_are_removed_at_once() -> None:
    node = ServingNode("one", MemoryBucket())
    stored = await node.fill(BODY, name="a")
    assert stored is not None
    await node.blocked.learn_new([A.digest])  # what a flush of the image index finds
    assert not await node.shows(A.key)
    assert A.digest in node.blocked.late, "its object is looked for after that"


async def test_hit_that_was_opened_before_a_notice_is_current_no_more() -> None:
    world = World()
    world.origin.gives(URL, make_image())
    await world.get(URL)
    hit = await world.ask(URL)
    assert world.image_service.is_current(hit)
    world.image_service.learn(hit.key)  # another process has stored another image under the key
    assert not world.image_service.is_current(hit), "the response would be cached for ten minutes"
    await hit.body.aclose()


async def test_picture_without_a_url_of_its_own_is_current_no_more_after_a_removal() -> None:
    world = World()
    world.origin.gives(URL, make_image())
    await world.get(URL)
    hit = await world.ask(URL)
    assert hit.record is not None
    of_link = replace(hit, object_name=None)
    of_object = replace(hit, object_name=None, record=None, key=hit.record.object_name)
    for picture in (of_link, of_object):
        assert world.image_service.is_current(picture)
    world.blocked.add(hit.record.digest)
    for picture in (of_link, of_object):
        assert not world.image_service.is_current(picture), "the response would be cached for ten minutes"
    await hit.body.aclose()
