"""
Permanent removal of images, and its undo.

Rules:
- A removal removes the image, not one link to it: it blocks the digest, whichever link brings these bytes.
- Each key that is known to name the image gets a tombstone. A provisional record does not prove that its key names the
  image: it stays as it is. The link that brought it shows nothing any more, because its bytes are blocked; the other
  links of the key make fills of their own as before. So bytes that came by an invented signature block no key.
- A forced removal also blocks a digest that was never stored, and puts a tombstone on a key with a provisional record.
- The block is durable before anything is deleted. So an interrupted removal can be repeated, and its image is not shown
  in between.

The durable steps of a removal, in their order:

0. where nodes share the database: its list of blocked digests, and in the same transaction the keys of the digest. A
   node that writes a record there does so before this step, and the key gets a tombstone; or it is told of the block
1. the block of the digest, with the keys that are going to get a tombstone
2. the deletion of the object; from here on this worker's memory holds the block. At the same time the memory of the
   other processes
3. the database's list of blocked digests
4. the tombstones, some at a time; then the rows of the image index

Without the shared database a removal is refused before step 0; if that fails later, the same removal completes it. If
the store does not take the block of step 1, step 0 is taken back.

The durable steps of an undo, in their order; after a crash between any two of them the same undo completes the rest:

1. the tombstones of the other keys that the block lists, where they are of the same digest
2. the block
3. the tombstone of the key that the operator named: last, because it alone says which digest that key had
4. memory, the database's list, the other processes

Nodes that share a database learn of both at once; the others, from the store (`blocked_digests.py`). Until then a node
may put the same bytes again, by another link or from its outbox. A public bucket would show them, so every put ends
with a look for the block (`put` of `storage/bucket/store.py`):

1. B puts the object.
2. B looks for the block of the digest, beside its PUT of the record. If the look finds one, B deletes the object, and
   its client is told that the image was removed.
3. If the look finds none, the block comes after it, and so does the deletion of the object: step 2 of the removal.
4. A service may carry out an upload after its node gave it up, and a process may die before it looks. Every process
   that learns of a removal asks for the object after that, and deletes it; while the bucket does not answer, again a
   minute later. `imgkeep verify` deletes what is left by then, and reports it.

A late record gets no tombstone, whichever of these steps it crosses: it stays as it is. Its digest is blocked, so a
link that it stands for is 410 on every node, and causes no fetch. An undo frees its key as well. It would not find a
tombstone that the block does not list, and a node that is late must not repeat a removal that was undone.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from imgkeep.core.errors import Busy, Removed, StorageError
from imgkeep.core.records import Doubt, Tombstone
from imgkeep.images.blocked_digests import REFRESH_INTERVAL_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime

    from imgkeep.clock import Clock, Sleep
    from imgkeep.core.records import Digest, Key, Record, Source
    from imgkeep.database import ImageIndex
    from imgkeep.images.blocked_digests import BlockedDigests
    from imgkeep.images.service import ImageService
    from imgkeep.storage.interfaces import Store

KEYS_CONCURRENT_MAX: Final = 16
"""Maximum number of tombstones of one digest that are written or deleted at once: one request to a bucket each."""
LATE_MAX: Final = 100
"""Maximum number of late objects that a refresh asks for, two requests each: a new node knows of no removal."""

PLAIN_DOUBTS: Final = frozenset({Doubt.UNSIGNED, Doubt.PLAINTEXT})
"""The doubts of a record that do not concern the link that brought it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """
    The outcome of an undo.

    Attributes:
        digest: The digest that is blocked no longer; `None`: only a key was.
        keys: The keys whose tombstones were deleted.
        stored: Whether the bytes are still there. A removal deletes them; an interrupted one may not have.
    """

    digest: Digest | None
    keys: tuple[Key, ...]
    stored: bool


class Remover:
    """
    Removes images and undoes removals, one at a time for each digest, by the list in `blocked`. Every call can be
    repeated, and has to be repeated after a `StorageError`.
    """

    def __init__(
        self,
        *,
        store: Store,
        image_index: ImageIndex,
        image_service: ImageService,
        blocked_digests: BlockedDigests,
        clock: Clock,
    ) -> None:
        self._store = store
        self._image_index = image_index
        self._image_service = image_service
        self.blocked = blocked_digests
        self._clock = clock
        self._locks: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        """For the digests that are being removed or restored."""

    async def remove_key(self, key: Key, *, force: bool = False) -> bool:
        """
        Remove the image under a key; `False`: none is stored, and nothing was done.

        Args:
            key: The key.
            force: Whether to put a tombstone on the key even if nothing is stored, or the record is provisional.

        Raises:
            StorageError: The image may not be removed.
        """
        try:
            record = await self._image_service.look_up(key)
        except Removed:
            await self._complete(key)
            return True
        if record is not None:
            await self._remove(record.digest, {key}, force=force)
        elif force:
            await self._put_tombstone(key, None)
            await self._image_index.drop([key])
        return force or record is not None

    async def remove_source(self, source: Source, *, force: bool = False) -> bool:
        """Remove the image that this node shows for a link, and no other image of its key. As `remove_key`."""
        try:
            key = await self._image_service.find_key(source)
        except Removed:
            for each in self._image_service.keys_of(source):
                await self._complete(each)
            return True
        return await self.remove_key(key, force=force)

    async def remove_digest(self, digest: Digest, *, force: bool = False) -> bool:
        """
        Remove the image of a digest; `False`: it is not stored, and nothing was done.

        Args:
            digest: The digest.
            force: Whether to block a digest that is not stored.

        Raises:
            StorageError: The image may not be removed.
        """
        known = force or digest in self.blocked or await self._store.has_object(digest)
        if not known and not await self._image_index.keys_of(digest):
            return False
        await self._remove(digest, set())
        return True

    async def delete_late_objects(self) -> None:
        """
        Delete bytes that this node stored before it learned that another node has removed them, some at a time.

        No tombstone is put, for the removal may be undone by now: a late node must not repeat it.
        """
        for digest in list(islice(self.blocked.late, LATE_MAX)):
            try:
                async with self._lock(digest):
                    if await self._store.has_object(digest) and await self._store.find_block(digest) is not None:
                        await self._store.delete_object(digest)
            except (StorageError, Busy):
                self.blocked.late.pop(digest, None)
                self.blocked.late[digest] = None  # a public bucket may show it: again, after the others
                return
            self.blocked.late.pop(digest, None)

    async def restore_key(self, key: Key) -> Restored | None:
        """
        Undo the removal of a key and of its digest; `None`: neither is removed, and nothing was done.

        Raises:
            StorageError: The removal may not be undone, or only in part.
        """
        tombstone = await self._store.find_tombstone(key)
        digest = await self._find_blocked(key) if tombstone is None else tombstone.digest
        if digest is None:
            return None if tombstone is None else await self._restore(None, tombstone)
        async with self._alone(digest):
            if tombstone is not None and await self._store.find_tombstone(key) != tombstone:
                return None  # another undo has completed it, or a removal has begun since
            return await self._restore(digest, tombstone)

    async def restore_source(self, source: Source) -> Restored | None:
        """Undo the removal of the image that a link was shown. As `restore_key`."""
        for key in self._image_service.keys_of(source):
            restored = await self.restore_key(key)
            if restored is not None:
                return restored
        return None

    async def restore_digest(self, digest: Digest) -> Restored | None:
        """Undo the removal of a digest, and of the keys that were removed with it. As `restore_key`."""
        async with self._alone(digest):
            if await self._store.find_block(digest) is None and digest not in self.blocked:
                return None
            return await self._restore(digest, None)

    async def learn(self, blocked: Collection[Digest], unblocked: Collection[Digest]) -> None:
        """Apply the removals and undos of another worker to this worker's memory."""
        await self.blocked.learn(blocked)
        with suppress(StorageError):  # the next refresh rechecks
            await self._recheck(unblocked)

    async def reload(self) -> None:
        """Read all removals and undos anew, and apply them. Raises as `BlockedDigests.reload`."""
        await self.blocked.reload()
        self._image_service.forget_removals()

    async def refresh(self) -> None:
        """Read the removals and undos of other nodes from the store, and apply them."""
        if await self.blocked.refresh():
            self._image_service.forget_removals()
        await self.delete_late_objects()

    async def run(self, sleep: Sleep) -> None:
        """Refresh in an interval, for ever."""
        while True:
            await sleep(REFRESH_INTERVAL_S)
            try:
                await self.refresh()
            except Exception:  # no answer of the store may end this loop
                log.exception("refresh of blocked digests failed unexpectedly")

    async def _recheck(self, digests: Collection[Digest]) -> None:
        try:
            await self.blocked.recheck(digests)
        finally:
            if digests:
                self._image_service.forget_removals()

    async def _restore(self, digest: Digest | None, named: Tombstone | None) -> Restored:
        """Undo in the order that the module names. `named` goes last."""
        block = None if digest is None else await self._store.find_block(digest)

        async def delete_tombstone(key: Key) -> bool:
            tombstone = await self._store.find_tombstone(key)
            if tombstone is None or tombstone.digest != digest or tombstone == named:
                return False
            await self._store.delete_tombstone(tombstone)
            return True

        keys = await _filter(block or (), delete_tombstone)
        if digest is not None:
            await self._store.unblock(digest)  # also if it is gone: the other nodes may not have been told
        if named is not None:
            await self._store.delete_tombstone(named)
            keys.append(named.key)
        for key in keys:
            self._image_service.forget(key)
        await self.blocked.recheck([] if digest is None else [digest])
        self._image_service.forget_removals()
        await self.blocked.tell_undone(digest, keys)
        stored = digest is not None and await self._store.has_object(digest)
        log.info("removal undone", extra={"digest": digest, "keys": len(keys)})
        return Restored(digest, tuple(sorted(keys)), stored)

    async def _find_blocked(self, key: Key) -> Digest | None:
        """Return the blocked digest that a record without a tombstone points at."""
        try:
            record = await self._store.find(key)
        except Removed:
            return None  # another task has just put a tombstone
        if record is None or await self._store.find_block(record.digest) is None:
            return None
        return record.digest

    async def _complete(self, key: Key) -> None:
        """Repeat what a crash after the first of several tombstones left undone."""
        tombstone = await self._store.find_tombstone(key)
        digest = None if tombstone is None else tombstone.digest
        if digest is not None and await self._store.find_block(digest) is not None:
            await self._remove(digest, {key})

    async def _remove(self, digest: Digest, named: set[Key], *, force: bool = False) -> None:
        """Remove in the order that the module names."""
        async with self._alone(digest):
            fault: StorageError | None = None
            others: Sequence[Key] = ()
            try:
                others = await self._image_index.block(digest)
            except StorageError as error:
                fault = error  # a removal does not wait for the database
            keys = await self._block_in_store(digest, named.union(others))
            await self.blocked.block(digest)

            async def put_tombstone(key: Key) -> bool:
                return await self._put_tombstone_unless_provisional(key, digest, named=key in named, force=force)

            removed = await _filter(keys, put_tombstone)
            await self._image_index.drop(removed)
            log.info("image removed", extra={"digest": digest})
            if fault is not None:
                raise fault

    async def _block_in_store(self, digest: Digest, keys: Collection[Key]) -> Collection[Key]:
        """Block a digest durably; return the keys that are going to get a tombstone."""
        before: Collection[Key] | None = None
        try:
            before = await self._store.find_block(digest)
            keys = {*keys, *(before or ())}
            await self._store.block(digest, self._now(), keys)
        except StorageError:
            if before is None and digest not in self.blocked:
                await self.blocked.unblock_in_database(digest)
            raise
        return keys

    async def _put_tombstone_unless_provisional(self, key: Key, digest: Digest, *, named: bool, force: bool) -> bool:
        """
        Put a tombstone on a key; a key whose record is provisional gets one only by force.

        Returns:
            `True`: the key shows these bytes no more, so the caller drops its row from the image index, also where no
            tombstone was put. `False`: the key has a record of other bytes, which stays, and so does its row.
        """
        try:
            record = await self._store.find(key)
        except Removed:
            self._image_service.forget(key)
            return True
        if record is not None and record.digest != digest:
            return False  # another link has brought other bytes, which were not removed
        doubted = record is not None and in_doubt(record, named=named)
        if (named and force) or (not doubted and (named or record is not None)):
            await self._put_tombstone(key, digest)
        return True

    async def _put_tombstone(self, key: Key, digest: Digest | None) -> None:
        await self._store.put_tombstone(Tombstone(key, self._now(), digest))
        self._image_service.forget(key)

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncGenerator[None]:
        """Keep a removal and an undo of the same digest apart, in this process and in all that can be told."""
        async with self._lock(digest), self.blocked.exclusively(digest):
            yield

    def _lock(self, digest: Digest) -> asyncio.Lock:
        """Return the lock that keeps a removal and an undo of the same digest apart in this process."""
        lock = self._locks.get(digest)
        if lock is None:
            lock = self._locks[digest] = asyncio.Lock()
        return lock

    def _now(self) -> datetime:
        return self._clock().replace(microsecond=0)


async def _filter(keys: Collection[Key], work: Callable[[Key], Awaitable[bool]]) -> list[Key]:
    """Do `work` for all keys, some at a time, and return those for which it is true."""
    slots = asyncio.Semaphore(KEYS_CONCURRENT_MAX)

    async def one(key: Key) -> bool:
        async with slots:
            return await work(key)

    order = sorted(keys)
    tasks = [asyncio.create_task(one(key)) for key in order]
    try:
        return [key for key, done in zip(order, await asyncio.gather(*tasks), strict=True) if done]
    finally:
        for task in tasks:
            task.cancel()


def in_doubt(record: Record, *, named: bool) -> bool:
    """
    Tell whether an untrusted client may have brought the bytes of a record to its key.

    If the operator `named` the key and a plain link filled it, the operator has seen the image of that link and wants
    it removed. Of a key that the removal found by its bytes the operator has seen none, so every doubt counts.
    """
    # A second link that brought the same bytes is no doubt about the plain link.
    agreed = {Doubt.SCHEME} if Doubt.UNSIGNED in record.doubts else set()
    return bool(record.doubts - PLAIN_DOUBTS - agreed) if named else bool(record.doubts)
