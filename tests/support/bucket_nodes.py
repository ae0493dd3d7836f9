"""Nodes that share a bucket in memory: the store, and what a process remembers of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from imgkeep.core.errors import Conflict, Removed
from imgkeep.database import RemovalIndex
from imgkeep.images.blocked_digests import BlockedDigests
from imgkeep.images.cache_trust import CacheTrust
from imgkeep.images.record_cache import RecordCache
from imgkeep.images.record_changes import RecordChanges
from imgkeep.images.record_sharing import RecordSharing
from imgkeep.images.removal import Remover
from imgkeep.replication.record_settler import RecordSettler
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.bucket.unsettled_records import SETTLE_AFTER_S
from tests.support.fakes import FakeDraft, FakeImageIndex, Timer, World
from tests.support.memory_bucket import MemoryBucket, MemoryClient
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.database import Database
    from imgkeep.images.interfaces import Notifier
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

    def __init__(
        self, name: str, bucket: MemoryBucket, order: Order | None = None, notifier: Notifier | None = None
    ) -> None:
        self.name = name
        self.client = MemoryClient(bucket)
        self.client.order = order
        self.store = BucketStore(self.client)
        self.index = FakeImageIndex()
        self.changed: list[Key] = []
        self.timer = Timer()
        self.trust = CacheTrust(self.timer)
        self.sharing = RecordSharing(
            changed=self.changed.append,
            remembered=self.store.note_seen,
            learn_blocked=self._learn_blocked,
            notifier=notifier,
            trust=self.trust,
        )
        self.records = RecordCache(self.store, self.index, (), Timer(), self.sharing)
        self.changes = RecordChanges(self.records, self.sharing)
        self.settler = RecordSettler(self.store.unsettled, self.store.find, self.index, self.changes)

    async def fill(self, body: bytes, *, name: str = "a") -> Record | None:
        """Store what an origin gave this node under a link; `None`: another image is there, or it was removed."""
        record = record_of(body, name=name, etag=f'"{self.name}"')
        try:
            stored = await self.store.put(await draft_of(body), record)
        except (Conflict, Removed):
            return None
        await self.changes.note_stored(stored, is_first=True)
        return stored

    async def _learn_blocked(self, digests: Collection[Digest]) -> None:
        raise AssertionError(f"this node has no list of blocked digests for {digests}")

    async def look_up(self, key: Key) -> Record | None:
        return await self.records.find(key)

    async def settle(self) -> None:
        """Read again what has to be read again, as some time later."""
        await self.settler.settle_due(asyncio.get_running_loop().time() + SETTLE_AFTER_S)

    def shown(self, key: Key) -> set[Record]:
        """Return what this process says of a key without asking the bucket: by its memory and by its index."""
        found = {self.records.cached(key), self.index.records.get(key)}
        return {record for record in found if record is not None}


class Removals(RemovalIndex):
    """The list of blocked digests that outlives a process."""

    def __init__(self) -> None:
        self.digests: set[Digest] = set()

    async def list_blocked(self) -> Collection[Digest]:
        return set(self.digests)

    async def block(self, digests: Collection[Digest]) -> None:
        self.digests.update(digests)

    async def unblock(self, digests: Collection[Digest]) -> None:
        self.digests.difference_update(digests)


class ServingNode(BucketNode):
    """A node with an image service, which removes images."""

    def __init__(
        self,
        name: str,
        bucket: MemoryBucket,
        order: Order | None = None,
        notifier: Notifier | None = None,
        database: Database | None = None,
    ) -> None:
        super().__init__(name, bucket, order, notifier)
        self.removals: Any = Removals() if database is None else database.removals
        self.blocked = BlockedDigests(self.store, self.removals, self._drop_copies, self._drop_pictures, notifier)
        index = None if database is None else database.image_index
        self.world = World(store=self.store, sharing=self.sharing, blocked=self.blocked, image_index=index)
        self.index = self.world.image_index
        self.changes = self.world.image_service.changes
        self.records = self.changes.records
        self.settler = RecordSettler(self.store.unsettled, self.store.find, self.index, self.changes)
        self.remover = Remover(
            store=self.store,
            image_index=self.index,
            image_service=self.world.image_service,
            blocked_digests=self.blocked,
            clock=lambda: NOON,
        )

    async def _learn_blocked(self, digests: Collection[Digest]) -> None:
        await self.blocked.learn_new(digests)

    async def _drop_pictures(self, _digest: Digest) -> None:
        """Drop nothing: this node makes no pictures."""

    async def _drop_copies(self, _digest: Digest) -> None:
        """Drop nothing: this node has no disk."""

    async def shows(self, key: Key) -> bool:
        """Whether a client is shown an image under a key."""
        try:
            return await self.world.image_service.deliver_stored(key) is not None
        except Removed:
            return False
