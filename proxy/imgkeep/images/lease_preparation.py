"""
Lease preparations: requests for leases that run while the store looks an image up.

A lookup that finds no row in the image index will probably end in a fill. So it requests the lease at once, and a fill
finds the answer there. Where the store has the image all the same, the lease is released.

Rules:
- All lookups of one name in this process share one preparation; the last one that ends without a fill releases.
- A peer that gets the name of this worker as the holder waits until the preparation has ended (`wait`): only then is
  there a fill to follow, or none.
- A preparation decides nothing. A fill requests its lease in any case, and finds the request that is there already.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from types import TracebackType

    from imgkeep.images.interfaces import Leases


class _Shared:
    """A preparation that any number of lookups share."""

    __slots__ = ("ended", "lookups")

    def __init__(self) -> None:
        self.lookups = 0
        self.ended = asyncio.Event()


class LeasePreparation:
    """
    The part of one lookup in a preparation, as a context: it begins where the lookup calls it, and ends with the block.

    Args:
        preparations: All preparations; `None`: this lookup prepares nothing.
        name: The name of the lease.
        find_link: Returns the hash of the link; `None`: no fill by this link may start.
    """

    __slots__ = ("_find_link", "_name", "_preparations", "_shared")

    def __init__(
        self,
        preparations: LeasePreparations | None = None,
        name: str = "",
        find_link: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._preparations = preparations
        self._name = name
        self._find_link = find_link
        self._shared: _Shared | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._preparations is not None and self._shared is not None:
            self._preparations.end(self._name, self._shared)

    def begin(self) -> None:
        """Request the lease: the image is probably not stored."""
        if self._preparations is None or self._shared is not None:
            return
        link = self._find_link()
        if link is not None:
            self._shared = self._preparations.begin(self._name, link)


class LeasePreparations:
    """
    The preparations of this process.

    Args:
        leases: The leases.
        running: The names of the running fills.
        followed: The names of fills elsewhere that requests of this process follow.
    """

    def __init__(self, leases: Leases, running: Container[str], followed: Container[str]) -> None:
        self._leases = leases
        self._running = running
        self._followed = followed
        self._shared: dict[str, _Shared] = {}

    def begin(self, name: str, link: bytes) -> _Shared | None:
        """Request a lease, or join a lookup that did; `None`: there is nothing to prepare."""
        shared = self._shared.get(name)
        if shared is None:
            if name in self._running or name in self._followed or not self._leases.prepare(name, link):
                return None
            shared = self._shared[name] = _Shared()
        shared.lookups += 1
        return shared

    def end(self, name: str, shared: _Shared) -> None:
        """End the part of one lookup. The last one releases the lease, unless a fill has taken it."""
        shared.lookups -= 1
        if shared.lookups == 0 and self.take(name, shared) and name not in self._running:
            self._leases.release(name)

    def take(self, name: str, shared: _Shared | None = None) -> bool:
        """Leave a prepared lease to the fill that starts now; `False`: there is none."""
        found = self._shared.get(name)
        if found is None or shared not in {None, found}:
            return False
        del self._shared[name]
        found.ended.set()
        return True

    async def wait(self, name: str) -> None:
        """Wait until there is no preparation of this name."""
        shared = self._shared.get(name)
        if shared is not None:
            await shared.ended.wait()


NOTHING_TO_PREPARE: Final = LeasePreparation()
"""For lookups of a process that is alone, and for those that must not end in a fill."""
