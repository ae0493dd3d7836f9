"""Nodes that share a bucket in memory: the store, and what a process remembers of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imgkeep.core.errors import Conflict
from imgkeep.images.record_cache import RecordCache
from imgkeep.images.record_changes import RecordChanges
from imgkeep.replication.record_settler import RecordSettler
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.bucket.unsettled import SETTLE_AFTER_S
from tests.support.fakes import FakeDraft, FakeImageIndex, Timer, World
from tests.support.memory_bucket import MemoryBucket, MemoryClient
from tests.support.stores import record_of

if TYPE_CHECKING:
    from imgkeep.core.records import Key, Record
    from tests.support.memory_bucket import Order


async def draft_of(body: bytes) -> FakeDraft:
    draft = FakeDraft(None)
    await draft.write(body)
    return draft


class BucketNode:
    """
    A node that puts images and looks records up, as fills and requests do.

    Attributes:
        changed: Keys whose responses were evicted from the response cache.
    """

    def __init__(self, name: str, bucket: MemoryBucket, order: Order | None = None, *, ordered: str = "") -> None:
        self.name = name
        self.client = MemoryClient(bucket)
        self.client.order, self.client.ordered = order, (ordered,)
        self.store = BucketStore(self.client)
        self.index = FakeImageIndex()
        self.changed: list[Key] = []
        self.records = RecordCache(self.store, self.index, (), Timer(), remembered=self.store.note_seen)
        self.changes = RecordChanges(self.records, self.changed.append, None)
        self.settler = RecordSettler(self.store.unsettled, self.store.find, self.index, self.changes)

    async def fill(self, body: bytes, *, name: str = "a") -> Record | None:
        """Store what an origin gave this node under a link; `None`: another image is stored under it."""
        record = record_of(body, name=name, etag=f'"{self.name}"')
        try:
            stored = await self.store.put(await draft_of(body), record)
        except Conflict:
            return None
        await self.changes.note_stored(stored)
        return stored

    async def look_up(self, key: Key) -> Record | None:
        return await self.records.find(key)

    async def settle(self) -> None:
        """Read again what has to be read again, as some time later."""
        await self.settler.settle_due(asyncio.get_running_loop().time() + SETTLE_AFTER_S)

    def shown(self, key: Key) -> set[Record]:
        """Return what this process says of a key without asking the bucket: by its memory and by its index."""
        found = {self.records.cached(key), self.index.records.get(key)}
        return {record for record in found if record is not None}


class ServingNode(BucketNode):
    """A node with an image service."""

    def __init__(self, name: str, bucket: MemoryBucket) -> None:
        super().__init__(name, bucket)
        self.world = World(store=self.store, changed=self.changed.append, remembered=self.store.note_seen)
        self.changes = self.world.image_service.changes
        self.records = self.changes.records
        self.settler = RecordSettler(self.store.unsettled, self.store.find, self.world.image_index, self.changes)
