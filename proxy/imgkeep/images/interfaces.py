"""Protocols for fills with several workers or nodes: leases and peers. `imgkeep.cluster` implements them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractAsyncContextManager

    from imgkeep.core.errors import ImgkeepError
    from imgkeep.core.records import Digest, Key
    from imgkeep.images.peer_fill import FillFailure, RemoteFill
    from imgkeep.images.request_context import HeldByPeer


NO_LINK: Final = b""
"""In the place of a link's hash: no recent failure of a link is an answer to the request."""


@dataclass(frozen=True, slots=True)
class LinkFailure:
    """
    The failure of a link, as the negative cache remembers it.

    Attributes:
        link: The hash of the link.
        ttl_s: Seconds for which the link is answered with the failure.
    """

    link: bytes
    error: ImgkeepError
    ttl_s: float


class LeaseRequest(Protocol):
    """A request for a lease to the other nodes."""

    async def answer(self) -> HeldByPeer | LinkFailure | None:
        """
        Wait for the answer: which member has the lease, or how the link failed a moment ago.

        `None`: this worker may fetch, because it has the lease, or because it could not ask in time.
        """


class Leases(Protocol):
    """
    The right to fetch an image, which one worker has at a time.

    A worker acquires a lease among the workers of its machine first, which takes microseconds. Then it requests the
    lease from the other nodes, if there are any.

    Attributes:
        grace_s: Time for which other workers see a lease after its image was stored. An older lookup is too old.
    """

    grace_s: float

    def acquire(self, name: str) -> str | None:
        """Acquire a lease on this machine; `None`: this worker has it, now or already. Else the worker that has it."""

    def prepare(self, name: str, link: bytes) -> bool:
        """Acquire and request a lease that a fill may need in a moment; `False`: that would spare it no time."""

    def request(self, name: str, link: bytes) -> LeaseRequest | None:
        """
        Request a lease that this worker has on this machine from the other nodes; `None`: there are no other nodes.

        Args:
            name: The name of the lease.
            link: The hash of the link to fetch by, whose recent failure is an answer; or `NO_LINK`.
        """

    def release(self, name: str, *, stored: bool = False) -> None:
        """Release a lease, if this worker has it: at once, or after the grace period if the image is stored."""

    async def fail(self, name: str, failure: LinkFailure) -> None:
        """Release a lease as soon as the failure is the answer to other nodes' requests by the same link, or soon."""

    def give_up_on(self, holder: str) -> bool:
        """Note that a holder cannot be reached; `True`: for a moment, this worker fetches without leases of it."""


class Peers(Protocol):
    """The other workers and nodes."""

    def follow(self, holder: str, name: str) -> AbstractAsyncContextManager[RemoteFill | FillFailure | None]:
        """
        Follow a fill in another worker or node, by the name of its lease; `None`: there is none to follow.

        Raises:
            Busy: The worker cannot be reached.
            StorageError: It fails unexpectedly.
        """

    async def wait(self, holder: str, key: str) -> None:
        """
        Wait until a worker or node has ended the fill of a key.

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
