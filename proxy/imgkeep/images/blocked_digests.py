"""
The digests of removed images, in the memory of each worker.

Rules:
- No worker shows or stores the bytes of a blocked digest, whichever link brings them.
- Nodes that share a database tell each other at once. Others learn from the store: each node lists its blocks once a
  minute; a bucket answers from its memory while none has changed (`storage/bucket/blocked_digests.py`). The database
  keeps the list for the next start.
- Bytes that this node has put shortly before it learned of their removal are deleted after it (`late`).
- No list and no notice of another worker ends a block in memory: the worker asks the store for that very block before
  it forgets the digest (`recheck`). So the store alone decides what is blocked, no clock of any node counts, and a
  removal after an undo wins over every message that is still under way:

1. A undoes the removal of X: the block is gone. A tells its other workers.
2. B removes X again: the block exists again, and B tells its workers that X is blocked.
3. A's notice, or a list from between 1 and 2, reaches a worker. The worker asks for the block, finds B's, and goes on
   blocking X.
4. Had the worker asked between 1 and 2, and learned of B's removal before the answer came, the answer is too old: what
   the worker learned while it asked counts.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext, suppress
from itertools import count, islice
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from contextlib import AbstractAsyncContextManager

    from imgkeep.core.records import Digest, Key
    from imgkeep.database import RemovalIndex
    from imgkeep.images.interfaces import Notifier
    from imgkeep.storage.interfaces import Store

REFRESH_INTERVAL_S: Final = 60
"""Interval of the lists of blocked digests: within it other nodes stop showing an image, or show it again."""
LOAD_TIMEOUT_S: Final = 20
"""Timeout for the list at the start, whose pages may come slowly for ever; the first refresh lists again."""
RECHECKS_CONCURRENT_MAX: Final = 16
RECHECKS_MAX: Final = 100
"""Maximum number of blocks that a refresh asks for, one request each; the next refresh asks for the others."""

log = logging.getLogger(__name__)


class BlockedDigests:
    """
    The digests of all removed images, a container. One per process.

    Attributes:
        late: Digests whose objects this process may have put since another one removed them, in the order of the looks
            for them.

    Args:
        store: The store, whose blocks decide.
        removals: Keeps the list for the next start.
        drop_copies: Deletes this machine's copies of a digest.
        drop_pictures: Deletes this machine's pictures that were made from it.
        notifier: The other processes; `None`: there are none.
    """

    def __init__(
        self,
        store: Store,
        removals: RemovalIndex,
        drop_copies: Callable[[Digest], Awaitable[None]],
        drop_pictures: Callable[[Digest], Awaitable[None]],
        notifier: Notifier | None = None,
    ) -> None:
        self._store = store
        self._removals = removals
        self._drop_copies = drop_copies
        self._drop_pictures = drop_pictures
        self._notifier = notifier
        self.late: dict[Digest, None] = {}
        self._digests: dict[Digest, int] = {}
        """Each with the number of the last message about it: a message that came after a question is newer."""
        self._messages = count()

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    async def load(self) -> None:
        """Read the list of the database, and that of the store if it answers."""
        try:
            self._note(await self._removals.list_blocked())
        except StorageError:
            log.warning("list of blocked digests not read from the database")
        try:
            await self.refresh(timeout_s=LOAD_TIMEOUT_S)
        except TimeoutError:
            log.warning("list of blocked digests not read from the store in time")

    async def refresh(self, *, timeout_s: float | None = None) -> bool:
        """
        Compare with the list of the store: block what other nodes have blocked, and recheck what the list lacks.

        Args:
            timeout_s: Timeout for the list.

        Returns:
            Whether some digests were rechecked, and may be blocked no longer.

        Raises:
            TimeoutError: The list takes longer.
        """
        missing: list[Digest] = []
        with suppress(StorageError):  # the store's health check reports it; the known digests stay blocked
            async with asyncio.timeout(timeout_s):
                listed = set(await self._store.list_blocked())
            new = listed - self._digests.keys()
            if new:
                await self.learn(new)
                await self._removals.block(new)
            missing = list(islice(self._digests.keys() - listed, RECHECKS_MAX))
            await self.recheck(missing)
        return bool(missing)

    async def block(self, digest: Digest) -> None:
        """
        Block a digest whose block is durable, on this node: delete the object, and tell the other processes.

        Raises:
            StorageError: The object may be left, or a process may not know yet.
        """
        self._note([digest])
        steps = [self._store.delete_object(digest), self._drop_pictures(digest)]
        if self._notifier is not None:
            steps.append(self._notifier.notify(blocked=[digest]))
        for fault in await asyncio.gather(*steps, return_exceptions=True):
            if fault is not None:
                raise fault
        await self._removals.block([digest])

    def exclusively(self, digest: Digest) -> AbstractAsyncContextManager[None]:
        """Keep removals and undos of other processes away until the end of the block. As `Notifier.exclusively`."""
        return nullcontext() if self._notifier is None else self._notifier.exclusively(digest)

    async def unblock_in_database(self, digest: Digest) -> None:
        """Take back what a removal that failed has noted in the database."""
        with suppress(StorageError):  # the next process that starts rechecks
            await self._removals.unblock([digest])

    async def reload(self) -> None:
        """
        Read the list of a database again that other nodes share, and recheck what it lacks: this process has missed
        changes.

        Raises:
            StorageError: The database does not answer.
        """
        listed = set(await self._removals.list_blocked())
        await self.learn_new(listed)
        with suppress(StorageError):  # a refresh rechecks, once the store answers
            await self.recheck(list(islice(self._digests.keys() - listed, RECHECKS_MAX)))

    async def learn_found(self, digests: Collection[Digest]) -> None:
        """
        Block digests that the database calls blocked, unless the store does not: its answer may be older than an undo.

        The row stays: it may be that of a removal whose block is on its way into the store.
        """
        new = [digest for digest in digests if digest not in self._digests]
        await self.learn_new(new)
        for digest in new:
            message = self._digests.get(digest)
            with suppress(StorageError):  # then it stays blocked until a refresh
                if await self._store.find_block(digest) is None and self._digests.get(digest) == message:
                    self._digests.pop(digest, None)

    async def learn_new(self, digests: Collection[Digest]) -> None:
        """Block those of the digests that are not known to be blocked. As `learn`."""
        if new := set(digests) - self._digests.keys():
            await self.learn(new)

    async def learn(self, digests: Collection[Digest]) -> None:
        """Block digests that another process has blocked, and delete this machine's copies."""
        self._note(digests)
        self.late.update(dict.fromkeys(digests))
        for digest in digests:
            await self._drop_copies(digest)
            await self._drop_pictures(digest)

    async def recheck(self, digests: Collection[Digest]) -> None:
        """
        Ask the store for the blocks of these digests, and forget the digests whose blocks are gone.

        Raises:
            StorageError: The store or the database does not answer; the known digests stay blocked.
        """
        slots = asyncio.Semaphore(RECHECKS_CONCURRENT_MAX)

        async def recheck_one(digest: Digest) -> None:
            async with slots:
                await self._recheck(digest)

        results = await asyncio.gather(*map(recheck_one, digests), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _recheck(self, digest: Digest) -> None:
        message = self._digests.get(digest)
        if message is None or await self._store.find_block(digest) is not None:
            return
        if self._digests.get(digest) != message:
            return  # removed again during the question
        del self._digests[digest]
        self.late.pop(digest, None)
        await self._removals.unblock([digest])
        # Another process may have written its row before this one deleted it.
        if await self._store.find_block(digest) is not None:
            await self.learn([digest])
            await self._removals.block([digest])

    async def tell_undone(self, digest: Digest | None, keys: Collection[Key]) -> None:
        """Tell the other processes that the block of a digest and the tombstones of keys are gone."""
        if self._notifier is not None:
            with suppress(StorageError):  # the next refresh of a process finds out
                await self._notifier.notify(changed=keys, unblocked=[] if digest is None else [digest])

    def _note(self, digests: Collection[Digest]) -> None:
        for digest in digests:
            self._digests[digest] = next(self._messages)
