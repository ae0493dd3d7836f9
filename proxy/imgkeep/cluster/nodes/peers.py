"""
Peers of a member of a cluster: the workers of its machine over Unix sockets, and the other nodes over TCP.

Rules:
- A holder with a slash in its name is a member of some node (`Membership.members`); any other is a worker of this
  machine (`cluster/workers/peers.py`).
- A request reaches some worker of a node. That one finds the worker with the fill by the local lease.
- A node that cannot be reached is `Busy` at once: the caller fetches by itself. What follows a member ends with it.
- A node brings bytes alone, within limits, and never the path of a file.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from imgkeep.cluster.progress import read_fill
from imgkeep.core.errors import Busy, OriginError, StorageError
from imgkeep.images.failure_history import RecentFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from imgkeep.cluster.nodes.member import Member
    from imgkeep.cluster.nodes.membership import Membership
    from imgkeep.cluster.nodes.peer_client import PeerClient
    from imgkeep.cluster.workers.peers import WorkerPeers
    from imgkeep.core.derived.names import PictureName
    from imgkeep.images.peer_fill import FillFailure, RemoteFill
    from imgkeep.storage.interfaces import Body

FAILURES_TIMEOUT_S: Final = 1
"""Timeout for the failures of a node: a page shows those that arrived in time."""
CONFIRMED_TIMEOUT_S: Final = 2
"""Timeout for the answer of a node whether the database has confirmed it."""
FAILURES_BYTES_MAX: Final = 8_388_608
"""Maximum size of the failures of a node: half a megabyte for each of its workers."""


class NodePeers:
    """
    The peers of this member.

    Args:
        membership: Tells which members are alive, and where.
        client: Sends the requests.
        local: The other workers of this machine; `None`: there are none.
        body_bytes_max: Maximum size of an image.
    """

    def __init__(
        self, membership: Membership, client: PeerClient, local: WorkerPeers | None, *, body_bytes_max: int
    ) -> None:
        self._membership = membership
        self._client = client
        self._local = local
        self._body_bytes_max = body_bytes_max
        self._following: dict[str, set[asyncio.Timeout]] = {}
        """The blocks that end with a member, by its id."""
        membership.when_gone(self._end_following)

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def follow(self, holder: str, name: str) -> AsyncGenerator[RemoteFill | FillFailure | None]:
        """
        Follow a fill of a peer, by the name of its lease; `None`: it runs none, or its fill has ended.

        Raises:
            Busy: The peer cannot be reached.
            StorageError: It fails unexpectedly.
        """
        if "/" not in holder:
            async with self._find_local().follow(holder, name) as fill:
                yield fill
            return
        has_begun = False
        try:
            async with self._while_live(holder), self._get(holder, f"/fills/{name}") as response:
                fill = await self._read_fill(response)
                has_begun = True
                yield fill
        except Busy:
            if has_begun:
                raise OriginError("the image broke off, because the node that fetches it has ended") from None
            raise

    async def wait(self, holder: str, key: str) -> None:
        """
        Wait until a peer runs no fill of this name.

        Raises:
            Busy: The peer cannot be reached.
        """
        if "/" not in holder:
            await self._find_local().wait(holder, key)
            return
        async with self._while_live(holder), self._get(holder, f"/fills/{key}/end") as response:
            _require(response.status == 204)

    async def failures(self) -> list[list[RecentFailure]]:
        """Return the recent failures of the workers and nodes that answer in time."""
        asked = [self._read_failures(member) for member in self._list_nodes()]
        if self._local is not None:
            asked.append(self._local.failures())
        return [each for found in await asyncio.gather(*asked) for each in found]

    async def find_confirmed(self, within_s: float) -> Collection[bool] | None:
        """
        Ask the other nodes whether the database has confirmed them within so many seconds.

        Returns:
            The answers that came in time; `None`: no other node is known.
        """
        nodes = self._list_nodes()
        if not nodes:
            return None
        answers = await asyncio.gather(*(self._ask_confirmed(each, within_s) for each in nodes))
        return [answer for answer in answers if answer is not None]

    async def fetch_object(self, holder: str, name: str) -> Body | None:
        """
        Open the object `<digest>.<ext>` that a node has on its disk; `None`: it has none, or may not show it.

        The body can be read once, in order. The caller compares its digest with its name.

        Args:
            holder: The name of a node, or the id of a member.
            name: The name of the object.

        Raises:
            Busy: The node cannot be reached.
            StorageError: It cannot read the object.
        """
        return await self._fetch_body(holder, f"/objects/{name}")

    async def fetch_picture(self, holder: str, name: PictureName) -> Body | None:
        """Open a derived picture that a member has on its disk. As `fetch_object`, but no digest proves its bytes."""
        return await self._fetch_body(holder, f"/pictures/{name.digest}/{name.file_name}")

    async def _fetch_body(self, holder: str, target: str) -> Body | None:
        async with AsyncExitStack() as stack:
            member = self._require_live(holder).id
            async with self._while_live(member):
                response = await stack.enter_async_context(self._get(member, target))
            if response.status == 404:
                return None
            size = response.content_length
            if response.status != 200 or size is None or size > self._body_bytes_max:
                raise StorageError("the node that has the image cannot read it")
            return NodeBody(response, size, stack.pop_all())

    async def _read_fill(self, response: aiohttp.ClientResponse) -> RemoteFill | FillFailure | None:
        if response.status == 204:
            return None
        _require(response.status == 200)
        try:
            return await read_fill(response.content, bytes_max=self._body_bytes_max)
        except OriginError:  # the node died before it had sent a message
            raise Busy("the node that fetches this image broke off") from None

    @asynccontextmanager
    async def _while_live(self, holder: str) -> AsyncGenerator[None]:
        """Run the block as long as a member is live. Raises: Busy: It is not any more."""
        try:
            async with asyncio.timeout(None) as limit:
                self._following.setdefault(holder, set()).add(limit)
                try:
                    yield
                finally:
                    self._following[holder].discard(limit)
                    if not self._following[holder]:
                        del self._following[holder]
        except TimeoutError:
            raise Busy("the node that fetches this image is not alive any more") from None

    def _end_following(self, member: str) -> None:
        for limit in self._following.get(member, ()):
            if limit.when() is None:  # else it has ended already
                limit.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _get(self, holder: str, target: str) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Ask a member. Raises: Busy: It cannot be reached, also within the block before an answer."""
        async with self._client.get(self._require_live(holder), target) as response:
            yield response

    def _require_live(self, holder: str) -> Member:
        member = self._find(holder)
        if member is None:
            raise Busy("the node that fetches this image is not alive")
        return member

    def _find(self, holder: str) -> Member | None:
        """Return a live member by its id or that of its node, never this process."""
        members = self._membership.members
        if "/" in holder:
            found = members.get(holder)
        else:
            found = next((each for each in members.values() if each.node == holder), None)
        return None if found is None or found.id == self._membership.id or not found.advertise_url else found

    def _find_local(self) -> WorkerPeers:
        if self._local is None:
            raise Busy("the worker that fetches this image has ended")
        return self._local

    def _list_nodes(self) -> list[Member]:
        """Return one member of each other node."""
        mine = self._membership.identity.node
        nodes = {each.node: each for each in self._membership.members.values() if each.node != mine}
        return [each for each in nodes.values() if each.advertise_url]

    async def _ask_confirmed(self, member: Member, within_s: float) -> bool | None:
        """Return the answer of a node; `None`: it gave none in time."""
        target = f"/confirmed/{max(0, int(within_s * 1000))}"
        try:
            async with asyncio.timeout(CONFIRMED_TIMEOUT_S), self._get(member.id, target) as response:
                return {200: True, 204: False}.get(response.status)
        except (Busy, TimeoutError, aiohttp.ClientError):
            return None

    async def _read_failures(self, member: Member) -> list[list[RecentFailure]]:
        try:
            async with asyncio.timeout(FAILURES_TIMEOUT_S), self._get(member.id, "/failures") as response:
                data = await response.content.read(FAILURES_BYTES_MAX) if response.status == 200 else b""
                while data and (more := await response.content.read(FAILURES_BYTES_MAX - len(data))):
                    data += more
            return [msgspec.msgpack.decode(data, type=list[RecentFailure])] if data else []
        except (Busy, TimeoutError, aiohttp.ClientError, msgspec.MsgspecError):
            return []


class NodeBody:
    """An object on the disk of another node. Implements `Body`, for one reader that reads it in order."""

    cache_entry = None

    def __init__(self, response: aiohttp.ClientResponse, size: int, stack: AsyncExitStack) -> None:
        self.size = size
        self._response = response
        self._stack = stack
        self._position = 0

    async def wait_for_size(self) -> int:
        return self.size

    async def read(self, offset: int, size: int) -> bytes:
        if offset >= self.size:
            return b""
        try:
            data = await self._response.content.read(size) if offset == self._position else b""
        except (TimeoutError, aiohttp.ClientError):
            data = b""
        if not data:
            raise StorageError("the image broke off on its way from another node")
        self._position += len(data)
        return data

    async def aclose(self) -> None:
        await self._stack.aclose()


def _require(is_expected: bool) -> None:  # noqa: FBT001 - a condition
    """Raise `Busy` where a node, perhaps of another version, does not do what it was asked for."""
    if not is_expected:
        raise Busy("the node that fetches this image does not report its progress")
