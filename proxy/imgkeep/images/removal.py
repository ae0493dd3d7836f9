"""
Removing a picture for good, and undoing that.

Rules:
- What is removed is the picture, not one link to it: its digest is blocked from then on, under whatever link it comes.
- Every key that is known to name the picture gets a tombstone. A record in doubt does not prove that its key names the
  picture: it stays as it is. The link that brought it shows nothing any more, because its bytes are blocked; other
  links of the key are tried as ever. So bytes that an invented signature brought block no key.
- What was never stored is removed, and a key in doubt is closed, only if the operator insists (`force`).
- The block is durable before anything goes, so what is interrupted can be done again, and shows nothing meanwhile.

The durable steps of a removal, in their order:

1. the block of the digest, with the keys that are going to have a tombstone
2. the object goes
3. this node's memory, its other workers, the database's list of blocked digests
4. the tombstones, some at a time; then the rows of the database

The durable steps of an undo, in their order; after a crash between any two of them the same undo finishes the rest:

1. the tombstones of the other keys that the block lists, as far as they are of the same digest
2. the block
3. the tombstone of the key that was named: last, because it alone says which digest that key had
4. memory, the database's list, the other workers

How other nodes learn: each node holds all blocked digests in memory and lists those of the store once a minute. No list
and no notice is believed about a digest that is blocked no longer: each node asks the store for that very block before
it forgets it (`BlockedDigests.look_again`). So the store alone says what is blocked, no clock of any node counts, and a
removal after an undo wins whatever is still on its way:

1. A undoes the removal of X: the block is gone. A tells its other workers.
2. B removes X again: the block is there again, and B is told that X is removed.
3. A's notice, or a list that was made between 1 and 2, reaches a worker. It asks for the block, finds B's, and goes on
   refusing X.
4. Had it asked between 1 and 2 and the answer came after it had learned of B's removal, the answer is too old: what was
   learned while it asked counts.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.records import Doubt, Tombstone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from datetime import datetime

    from imgkeep.clock import Clock, Sleep
    from imgkeep.core.records import Digest, Key, Record, Source
    from imgkeep.images.peer_fill import Peers
    from imgkeep.storage.interfaces import Store

REFRESH_EVERY_S: Final = 60
"""Interval of the lists of blocked digests: within it other nodes stop showing a picture, or show it again."""
KEYS_AT_ONCE: Final = 16
"""Maximum number of keys of a digest that are closed or opened at once: as many records as a bucket is asked for."""
LOOKED_AT_MAX: Final = 100
"""Maximum number of blocks that are asked for in a refresh, one request each; the others come in the next one."""

PLAIN_DOUBTS: Final = frozenset({Doubt.UNSIGNED, Doubt.PLAINTEXT})
"""Of the doubts of a record those that say nothing against the link that brought it."""

log = logging.getLogger(__name__)


class Register(Protocol):
    """The database, for who removes."""

    async def refused(self) -> Collection[Digest]:
        """Return the digests that are refused, as far as they were brought in."""

    async def refuse(self, digests: Collection[Digest]) -> None:
        """Bring blocked_digests in, for the next start."""

    async def allow(self, digests: Collection[Digest]) -> None:
        """Forget blocked_digests that were undone."""

    async def keys_of(self, digest: Digest) -> Sequence[Key]:
        """Return the keys of all records that point at an object."""

    async def drop(self, keys: Collection[Key]) -> None:
        """Forget records that were removed."""


class Finder(Protocol):
    """The image_service, for who removes."""

    async def look_up(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `Store.find`."""

    async def shown(self, source: Source) -> Key:
        """Return the key of the image that a link is shown, whether one is stored or not."""

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        """Return the two keys under which the image of a link may be stored: the one that it shares, and its own."""

    def forget(self, key: Key) -> None:
        """Hold nothing in memory that says that an image is kept, or that it was removed."""


@dataclass(frozen=True, slots=True)
class Restored:
    """
    What an undo did.

    Attributes:
        digest: What is blocked no longer; `None`: nothing was, only the key was.
        keys: Which tombstones were deleted.
        stored: Whether the bytes are still there. A removal deletes them; one that was interrupted may not have.
    """

    digest: Digest | None
    keys: tuple[Key, ...]
    stored: bool


class BlockedDigests:
    """
    The digests of all pictures that are refused. `dropped` is told of new ones, and so are other workers, before
    whoever removes is told that it is done.
    """

    def __init__(
        self,
        store: Store,
        register: Register,
        dropped: Callable[[Digest], Awaitable[None]],
        peers: Peers | None = None,
    ) -> None:
        self._store = store
        self._peers = peers
        self._register = register
        self._dropped = dropped
        self._digests: dict[Digest, int] = {}
        """Each with the number of its last lesson: what was learned since a question was asked is newer."""
        self._lessons = count()
        self.restored: Callable[[], None] = lambda: None
        """Is told that some digests are blocked no longer."""
        self.removed_elsewhere: Callable[[Digest], Awaitable[None]] = dropped
        """Is told of a digest that another node has blocked while this one was running."""

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    async def open(self) -> None:
        """Bring in what the database knows, and the store if it can be reached."""
        try:
            self._note(await self._register.refused())
        except StorageError:
            log.warning("the database does not tell which pictures are refused")
        await self.refresh()

    async def refresh(self) -> set[Digest]:
        """Bring in what other nodes have refused, and forget what they have restored; return what is new."""
        try:
            listed = set(await self._store.list_blocked())
            new = listed - self._digests.keys()
            if new:
                await self.learn(new)
                await self._register.refuse(new)
            gone = self._digests.keys() - listed
            await self.look_again(list(islice(gone, LOOKED_AT_MAX)))
        except StorageError:
            return set()  # the store tells its own trouble; what is known stays
        return new

    async def add(self, new: Collection[Digest]) -> None:
        """
        Refuse pictures from now on, on this node.

        Raises:
            StorageError: Somebody may not know yet.
        """
        await self.learn(new)
        if self._peers is not None:
            await self._peers.notify(refused=new)
        await self._register.refuse(new)

    async def learn(self, new: Collection[Digest]) -> None:
        """Refuse what another worker has refused."""
        self._note(new)
        for digest in new:
            await self._dropped(digest)

    async def look_again(self, digests: Collection[Digest]) -> None:
        """
        Ask the store for these blocks, and forget those that are gone.

        Raises:
            StorageError: The store or the database cannot tell; what is known stays.
        """
        for digest in digests:
            lesson = self._digests.get(digest)
            if lesson is None or await self._store.find_block(digest) is not None:
                continue
            if self._digests.get(digest) != lesson:
                continue  # it was removed again while we asked
            del self._digests[digest]
            self.restored()
            await self._register.allow([digest])
            # Another process may have put its row before ours was deleted.
            if await self._store.find_block(digest) is not None:
                await self.learn([digest])
                await self._register.refuse([digest])

    async def lift(self, digest: Digest | None, keys: Collection[Key]) -> None:
        """
        The block of a digest and the tombstones of keys are gone: forget them, and have the other workers forget them.

        Raises:
            StorageError: This worker may not know yet; the next refresh tells it.
        """
        digests = [] if digest is None else [digest]
        await self.look_again(digests)
        self.restored()
        if self._peers is not None:
            with suppress(StorageError):  # their next refresh tells them
                await self._peers.notify(changed=keys, restored=digests)

    async def run(self, sleep: Sleep) -> None:
        """Refresh, for ever."""
        while True:
            await sleep(REFRESH_EVERY_S)
            try:
                for digest in await self.refresh():
                    with suppress(StorageError):  # what is left of it is never shown
                        await self.removed_elsewhere(digest)
            except Exception:  # this loop must not end, whatever an answer holds
                log.exception("looking for blocked_digests failed as nobody foresaw")

    def _note(self, digests: Collection[Digest]) -> None:
        for digest in digests:
            self._digests[digest] = next(self._lessons)


class Remover:
    """
    Removes pictures and undoes removals, one at a time for each digest. All calls can be repeated, and have to be after
    a `StorageError`.
    """

    def __init__(
        self, *, store: Store, register: Register, finder: Finder, blocked_digests: BlockedDigests, clock: Clock
    ) -> None:
        self._store = store
        self._register = register
        self._finder = finder
        self._refusals = blocked_digests
        self._clock = clock
        self._locks: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        """Of the digests that are being removed or restored."""

    async def remove_key(self, key: Key, *, force: bool = False) -> bool:
        """
        Remove the picture under a key; `False`: there is none, and nothing was done.

        Args:
            key: Which one.
            force: Close the key to all links, even if nothing is stored, or what is stored is in doubt.

        Raises:
            StorageError: It may not be removed.
        """
        try:
            record = await self._finder.look_up(key)
        except Removed:
            await self._finish(key)
            return True
        if record is not None:
            await self._remove(record.digest, {key}, force=force)
        elif force:
            await self._bury(key, None)
            await self._register.drop([key])
        return force or record is not None

    async def remove_source(self, source: Source, *, force: bool = False) -> bool:
        """Remove the picture that this node shows for a link, and no other one of its key. As `remove_key`."""
        try:
            key = await self._finder.shown(source)
        except Removed:
            for each in self._finder.keys_of(source):
                await self._finish(each)
            return True
        return await self.remove_key(key, force=force)

    async def remove_digest(self, digest: Digest, *, force: bool = False) -> bool:
        """
        Remove the picture of a digest; `False`: it is nowhere stored, and nothing was done.

        Args:
            digest: Which one.
            force: Where it is not stored, see to it that it never is.

        Raises:
            StorageError: It may not be removed.
        """
        known = force or digest in self._refusals or await self._store.has_object(digest)
        if not known and not await self._register.keys_of(digest):
            return False
        await self._remove(digest, set())
        return True

    async def finish(self, digest: Digest) -> None:
        """
        Delete the bytes that this node has stored before it learned that another node has removed them.

        No mark is put, for the removal may be undone by now: a late node must not bring it back.

        Raises:
            StorageError: Some of it may be left.
        """
        async with self._alone(digest):
            if await self._store.has_object(digest) and await self._store.find_block(digest) is not None:
                await self._store.delete_object(digest)

    async def restore_key(self, key: Key) -> Restored | None:
        """
        Undo the removal of a key and of its digest; `None`: neither is removed, and nothing was done.

        Raises:
            StorageError: It may not be undone, or only in part.
        """
        tombstone = await self._store.find_tombstone(key)
        digest = await self._find_blocked(key) if tombstone is None else tombstone.digest
        if digest is None:
            return None if tombstone is None else await self._restore(None, tombstone)
        async with self._alone(digest):
            if tombstone is not None and await self._store.find_tombstone(key) != tombstone:
                return None  # another undo has finished it, or a removal has begun since
            return await self._restore(digest, tombstone)

    async def restore_source(self, source: Source) -> Restored | None:
        """Undo the removal of what a link was shown. As `restore_key`."""
        for key in self._finder.keys_of(source):
            restored = await self.restore_key(key)
            if restored is not None:
                return restored
        return None

    async def restore_digest(self, digest: Digest) -> Restored | None:
        """Undo the removal of a digest, and of the keys that were removed with it. As `restore_key`."""
        async with self._alone(digest):
            if await self._store.find_block(digest) is None and digest not in self._refusals:
                return None
            return await self._restore(digest, None)

    async def _restore(self, digest: Digest | None, named: Tombstone | None) -> Restored:
        """Undo in the order that the module names. `named` goes last."""
        block = None if digest is None else await self._store.find_block(digest)

        async def open_up(key: Key) -> bool:
            tombstone = await self._store.find_tombstone(key)
            if tombstone is None or tombstone.digest != digest or tombstone == named:
                return False
            await self._store.delete_tombstone(tombstone)
            return True

        keys = await _those(block or (), open_up)
        if digest is not None and block is not None:
            await self._store.unblock(digest)
        if named is not None:
            await self._store.delete_tombstone(named)
            keys.append(named.key)
        for key in keys:
            self._finder.forget(key)
        await self._refusals.lift(digest, keys)
        stored = digest is not None and await self._store.has_object(digest)
        log.info("removal undone", extra={"digest": digest, "keys": len(keys)})
        return Restored(digest, tuple(sorted(keys)), stored)

    async def _find_blocked(self, key: Key) -> Digest | None:
        """Return the blocked digest that a record without a tombstone points at."""
        try:
            record = await self._store.find(key)
        except Removed:
            return None  # by another task, this very moment
        if record is None or await self._store.find_block(record.digest) is None:
            return None
        return record.digest

    async def _finish(self, key: Key) -> None:
        """Do again what a crash after the first of several tombstones left undone."""
        tombstone = await self._store.find_tombstone(key)
        digest = None if tombstone is None else tombstone.digest
        if digest is not None and await self._store.find_block(digest) is not None:
            await self._remove(digest, {key})

    async def _remove(self, digest: Digest, named: set[Key], *, force: bool = False) -> None:
        """Remove in the order that the module names."""
        async with self._alone(digest):
            await self._remove_alone(digest, named, force=force)

    async def _remove_alone(self, digest: Digest, named: set[Key], *, force: bool) -> None:
        fault: StorageError | None = None
        others: Sequence[Key] = ()
        try:
            others = await self._register.keys_of(digest)
        except StorageError as error:
            fault = error  # a picture that has to go does not wait for the database
        before = await self._store.find_block(digest) or ()
        keys = named.union(others, before)
        await self._store.block(digest, self._now(), keys)
        await self._store.delete_object(digest)
        await self._refusals.add([digest])
        gone = await _those(keys, lambda key: self._close(key, digest, named=key in named, force=force))
        await self._register.drop(gone)
        log.info("removed", extra={"digest": digest})
        if fault is not None:
            raise fault

    async def _close(self, key: Key, digest: Digest, *, named: bool, force: bool) -> bool:
        """Let a key show removed bytes no more; `False`: it has something else to show, or nothing."""
        try:
            record = await self._store.find(key)
        except Removed:
            self._finder.forget(key)
            return True
        if record is not None and record.digest != digest:
            return False  # another link has brought other bytes, which were not removed
        doubted = record is not None and in_doubt(record, named=named)
        if (named and force) or (not doubted and (named or record is not None)):
            await self._bury(key, digest)
        return True

    async def _bury(self, key: Key, digest: Digest | None) -> None:
        await self._store.put_tombstone(Tombstone(key, self._now(), digest))
        self._finder.forget(key)

    def _alone(self, digest: Digest) -> asyncio.Lock:
        """Return what keeps a removal and an undo of the same digest apart."""
        lock = self._locks.get(digest)
        if lock is None:
            lock = self._locks[digest] = asyncio.Lock()
        return lock

    def _now(self) -> datetime:
        return self._clock().replace(microsecond=0)


async def _those(keys: Collection[Key], work: Callable[[Key], Awaitable[bool]]) -> list[Key]:
    """Do `work` for all keys, some at a time, and return those for which it is true."""
    places = asyncio.Semaphore(KEYS_AT_ONCE)

    async def one(key: Key) -> bool:
        async with places:
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
    Tell whether a stranger may have brought the bytes of a record to its key.

    An operator who names a key that a plain link filled has seen what that link shows, and means it. Of a key that is
    only found to have the same bytes the operator has said nothing: there every doubt counts.
    """
    if not named:
        return bool(record.doubts)
    # That another link was seen to bring the same bytes says nothing against the plain one.
    agreed = {Doubt.SCHEME} if Doubt.UNSIGNED in record.doubts else set()
    return bool(record.doubts - PLAIN_DOUBTS - agreed)
