"""
Removing a picture for good.

Rules:
- What is removed is the picture, not one link to it: its digest is refused from then on, under whatever link it comes,
  and every link that is known to lead to it gets a tombstone.
- The refusal is durable before anything goes, so what is interrupted can be done again, and shows nothing meanwhile.
- Each node holds all refusals in memory, and asks the store for those of other nodes once a minute.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from proxy.core.errors import Removed, StorageError
from proxy.core.model import Tombstone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from proxy.core.model import Digest, Key, Record, SourceInfo
    from proxy.ports import Clock, Siblings, Sleep, Store

REFRESH_EVERY_S: Final = 60

log = logging.getLogger(__name__)


class Register(Protocol):
    """The catalog, for who removes."""

    async def refused(self) -> Collection[Digest]:
        """Return the digests that are refused, as far as they were brought in."""

    async def refuse(self, digests: Collection[Digest]) -> None:
        """Bring refusals in, for the next start."""

    async def keys_of(self, digest: Digest) -> Sequence[Key]:
        """Return the keys of all records that point at an object."""

    async def drop(self, keys: Collection[Key]) -> None:
        """Forget records that were removed."""


class Finder(Protocol):
    """The keeper, for who removes."""

    async def look_up(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `ports.Store.find`."""

    def forget(self, key: Key) -> None:
        """Hold nothing in memory that says that an image is kept."""


class Refusals:
    """
    The digests of all pictures that are refused. `dropped` is told of new ones, and so are other workers, before
    whoever removes is told that it is done.
    """

    def __init__(
        self,
        store: Store,
        register: Register,
        dropped: Callable[[Digest], Awaitable[None]],
        siblings: Siblings | None = None,
    ) -> None:
        self._store = store
        self._siblings = siblings
        self._register = register
        self._dropped = dropped
        self._digests: set[Digest] = set()

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    async def open(self) -> None:
        """Bring in what the catalog knows, and the store if it can be reached."""
        try:
            self._digests.update(await self._register.refused())
        except StorageError:
            log.warning("the catalog does not tell which pictures are refused")
        await self.refresh()

    async def refresh(self) -> None:
        """Bring in what other nodes have refused."""
        try:
            new = set(await self._store.refused()) - self._digests
            if new:
                await self.learn(new)
                await self._register.refuse(new)
        except StorageError:
            return  # the store tells its own trouble; what is known stays

    async def add(self, new: Collection[Digest]) -> None:
        """
        Refuse pictures from now on, on this node.

        Raises:
            StorageError: Somebody may not know yet.
        """
        await self.learn(new)
        if self._siblings is not None:
            await self._siblings.tell(refused=new)
        await self._register.refuse(new)

    async def learn(self, new: Collection[Digest]) -> None:
        """Refuse what another worker has refused."""
        self._digests.update(new)
        for digest in new:
            await self._dropped(digest)

    async def run(self, sleep: Sleep) -> None:
        """Refresh, for ever."""
        while True:
            await sleep(REFRESH_EVERY_S)
            try:
                await self.refresh()
            except Exception:  # this loop must not end, whatever an answer holds
                log.exception("looking for refusals failed as nobody foresaw")


class Remover:
    """Removes pictures. All calls can be repeated, and have to be after a `StorageError`."""

    def __init__(self, *, store: Store, register: Register, finder: Finder, refusals: Refusals, clock: Clock) -> None:
        self._store = store
        self._register = register
        self._finder = finder
        self._refusals = refusals
        self._clock = clock

    async def remove_key(self, key: Key) -> bool:
        """
        Remove the picture under a key; `False`: there is none, and nothing was done.

        Raises:
            StorageError: It may not be removed.
        """
        try:
            record = await self._finder.look_up(key)
        except Removed:
            return True
        if record is None:
            return False
        await self._remove(record.digest, {key})
        return True

    async def remove_source(self, info: SourceInfo) -> None:
        """
        Remove the picture that a link names, or see to it that none is ever fetched. Raises as `remove_key`.
        """
        if not await self.remove_key(info.key):
            await self._bury({info.key})

    async def remove_digest(self, digest: Digest) -> None:
        """Remove the picture of a digest, or see to it that it is never kept. Raises as `remove_key`."""
        await self._remove(digest, set())

    async def remove_record(self, record: Record) -> None:
        """Remove the picture of a record that turned out to be removed already, by its link or by its digest."""
        await self._remove(record.digest, {record.key})

    async def _remove(self, digest: Digest, keys: set[Key]) -> None:
        await self._store.refuse(digest, self._clock().replace(microsecond=0))
        await self._refusals.add([digest])
        await self._bury(keys | set(await self._register.keys_of(digest)))
        log.info("removed", extra={"digest": digest})

    async def _bury(self, keys: set[Key]) -> None:
        for key in sorted(keys):
            await self._store.bury(Tombstone(key, self._clock().replace(microsecond=0)))
            self._finder.forget(key)
        await self._register.drop(keys)
