"""Protocols for fills with several workers: leases and peers. `imgkeep.cluster` implements them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractAsyncContextManager

    from imgkeep.core.records import Digest, Key
    from imgkeep.images.peer_fill import FillFailure, RemoteFill


class Leases(Protocol):
    """
    The right to fetch an image, which one worker has at a time.

    Attributes:
        grace_s: Time for which other workers see a lease after its image was stored. An older lookup is too old.
    """

    grace_s: float

    def acquire(self, key: str) -> str | None:
        """Acquire a lease; `None`: this worker has it, now or already. Else the worker that has it."""

    def release(self, key: str, *, stored: bool = False) -> None:
        """Release a lease, if this worker has it: at once, or after the grace period if the image is stored."""


class Peers(Protocol):
    """The other workers."""

    def follow(self, holder: str, name: str) -> AbstractAsyncContextManager[RemoteFill | FillFailure | None]:
        """
        Follow a fill in another worker, by the name of its lease; `None`: there is no fill to follow, or not any more.

        Raises:
            Busy: The worker cannot be reached.
            StorageError: It fails unexpectedly.
        """

    async def wait(self, holder: str, key: str) -> None:
        """
        Wait until a worker has ended the fill of a key.

        Raises:
            Busy: The worker cannot be reached.
        """


class Notifier(Protocol):
    """The means to tell all other processes that share the store what has changed."""

    async def notify(
        self,
        *,
        blocked: Collection[Digest] = (),
        changed: Collection[Key] = (),
        unblocked: Collection[Digest] = (),
    ) -> None:
        """
        Tell the other processes, and wait until all that are live know.

        Args:
            blocked: Digests that are blocked from now on.
            changed: Keys under which another image is stored.
            unblocked: Digests that may be blocked no longer.

        Raises:
            StorageError: Some process may not know.
        """

    def exclusively(self, digest: Digest) -> AbstractAsyncContextManager[None]:
        """
        Keep removals and undos of a digest by other processes away until the end of the block.

        Raises:
            Busy: Another process removes or restores it.
            StorageError: The other processes could not be told of a removal. Nothing has been done.
        """


@dataclass(frozen=True, slots=True)
class Cluster:
    """The means by which several workers share fills."""

    leases: Leases
    peers: Peers
