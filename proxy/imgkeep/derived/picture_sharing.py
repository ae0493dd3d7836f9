"""
One derivation of a picture at a time, over all workers and nodes, by the leases of fills.

A process acquires the lease of a picture, looks for the picture again, and makes it. Another process that wants the
same picture waits for the holder, and looks again:

1. A worker of the same machine finds the picture on the disk that they share.
2. A worker of another node finds it in the store, with `derive.store`; else it fetches the picture from the node that
   made it, and puts it into its own cache. Other nodes see the lease for a grace period after the picture was made.
3. If there is still none, because the holder failed, died or has no room, the process tries the lease again.

A lease saves a derivation, and no picture depends on it: a process that waits in vain for the same holder twice, or
cannot reach it, makes the picture without a lease. An original that fails to give a picture fails once for all nodes:
they share that failure as they share that of a link.
"""

from __future__ import annotations

import asyncio
import copy
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy, DeriveFailed, ImgkeepError, StorageError
from imgkeep.derived.original_file import PIECE_BYTES
from imgkeep.images.interfaces import LinkFailure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.derived.names import PictureName
    from imgkeep.derived.picture_cache import FoundPicture, PictureCache
    from imgkeep.images.interfaces import Cluster
    from imgkeep.images.request_context import HeldByPeer
    from imgkeep.storage.interfaces import Body

LEASE_PREFIX: Final = "picture."
"""Begins the names of the leases of pictures; fills have others."""
FOLLOW_ATTEMPTS_MAX: Final = 5
"""Maximum number of holders that one request waits for."""
WAIT_TIMEOUT_S: Final = 60
"""Timeout for one of them: a derivation and its place in the queue take less."""
FAILURE_TTL_S: Final = 60
"""Time for which other nodes learn of a failure; they remember it themselves from then on."""


class PictureSharing:
    """
    The derivations of one process, and how it shares them.

    Args:
        cache: Takes the pictures of other nodes.
        cluster: The leases and the peers; `None`: this is the only process.
        fetch_from_node: Opens a picture at the member with this id; `None`: there is no other node.
    """

    def __init__(
        self,
        cache: PictureCache,
        cluster: Cluster | None = None,
        fetch_from_node: Callable[[str, PictureName], Awaitable[Body | None]] | None = None,
    ) -> None:
        self._cache = cache
        self._cluster = cluster
        self._fetch_from_node = fetch_from_node
        self._running: dict[str, asyncio.Event] = {}
        """By the name of its lease, the end of each derivation of this process."""

    async def make_once(
        self,
        name: PictureName,
        look: Callable[[], Awaitable[FoundPicture | None]],
        make: Callable[[], Awaitable[FoundPicture]],
    ) -> FoundPicture:
        """
        Return a picture that no process is making, or that another process has made meanwhile. One call a name at a
        time.

        Args:
            name: Its name.
            look: Finds it, wherever it may be by now.
            make: Makes it, and puts it into the cache.

        Raises:
            ImgkeepError: As `make`.
        """
        if self._cluster is None:
            return await look() or await make()
        lease, followed = lease_of(name), ""
        for _ in range(FOLLOW_ATTEMPTS_MAX):
            holder = await self._acquire(self._cluster, lease)
            if holder is None:
                return await self._make(self._cluster, lease, look, make)
            if holder == followed or not await self._wait_for(self._cluster, holder, lease):
                break
            followed = holder
            found = await look() or await self._fetch(holder, name)
            if found is not None:
                return found
        return await make()

    async def wait(self, lease: str) -> None:
        """Wait until this process makes no picture under a lease, whether it succeeds or fails."""
        running = self._running.get(lease)
        if running is not None:
            await running.wait()

    async def _acquire(self, cluster: Cluster, lease: str) -> str | None:
        """
        Acquire a lease; `None`: this process has it. Else its holder.

        Raises:
            DeriveFailed: Another node has just failed to make this picture.
        """
        leases = cluster.leases
        holder = leases.acquire(lease)
        if holder is not None:
            return holder
        request = leases.request(lease, _link_of(lease))
        if request is None:
            return None
        try:
            answer: HeldByPeer | LinkFailure | None = await request.answer()
        except BaseException:
            leases.release(lease)
            raise
        if answer is None:
            return None
        leases.release(lease)
        if isinstance(answer, LinkFailure):
            raise copy.copy(answer.error)  # each request has a traceback of its own
        return answer.holder

    async def _make(
        self,
        cluster: Cluster,
        lease: str,
        look: Callable[[], Awaitable[FoundPicture | None]],
        make: Callable[[], Awaitable[FoundPicture]],
    ) -> FoundPicture:
        """Make a picture under a lease of this process."""
        ended = self._running[lease] = asyncio.Event()
        stored = False
        try:
            found = await look() or await make()
            stored = True
        except DeriveFailed as error:
            await cluster.leases.fail(lease, LinkFailure(_link_of(lease), error, FAILURE_TTL_S))
            raise
        else:
            return found
        finally:
            del self._running[lease]
            ended.set()
            cluster.leases.release(lease, stored=stored)

    async def _wait_for(self, cluster: Cluster, holder: str, lease: str) -> bool:
        """Wait until another process makes a picture no more; `False`: it cannot be reached."""
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                await cluster.peers.wait(holder, lease)
        except (ImgkeepError, TimeoutError):
            cluster.leases.give_up_on(holder)
            return False
        return True

    async def _fetch(self, holder: str, name: PictureName) -> FoundPicture | None:
        """Fetch a picture from the node that made it, and put it into the cache; `None`: that is not possible."""
        if self._fetch_from_node is None or "/" not in holder:
            return None  # a worker of this machine: its pictures are on the same disk
        with suppress(StorageError, Busy):
            body = await self._fetch_from_node(holder, name)
            if body is not None:
                return await self._copy(body, name)
        return None

    async def _copy(self, body: Body, name: PictureName) -> FoundPicture:
        try:
            draft = await self._cache.begin()
            try:
                size = 0
                while data := await body.read(size, PIECE_BYTES):
                    size = draft.write(data, size)
                return await self._cache.put(draft, name)
            finally:
                await draft.aclose()
        finally:
            await body.aclose()


def lease_of(name: PictureName) -> str:
    """Return the name of the lease of a picture."""
    return f"{LEASE_PREFIX}{sha256(name.path.encode()).hexdigest()}"


def _link_of(lease: str) -> bytes:
    """Return what stands for the link in a shared failure: a picture has one."""
    return bytes.fromhex(lease.removeprefix(LEASE_PREFIX))
