"""Nodes of a cluster in one process: each has an image service in memory, and leases in one PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

from imgkeep.cluster.nodes.leases import NodeLeases
from imgkeep.cluster.nodes.membership import Membership, NodeIdentity
from imgkeep.core.errors import Busy
from imgkeep.core.records import Key
from imgkeep.database.session import DatabaseSession
from imgkeep.images.interfaces import Cluster
from imgkeep.images.peer_fill import FillFailure, RemoteFill
from tests.support.fakes import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import LiteralString

    from imgkeep.cluster.workers.leases import FillLeases
    from imgkeep.images.fill import FillHead
    from imgkeep.images.shared_body import SharedBody

SECRET = "s" * 32
GRACE_S = 10.0
_numbers = count(1)


class LeaseNode:
    """One process of a node. `peers` reach the other processes of `nodes`, unless these are cut off."""

    def __init__(self, url: str, name: str, nodes: dict[str, LeaseNode], *, local: FillLeases | None = None) -> None:
        self.is_cut_off = False
        self.offset_s = 0.0
        self.followed: list[str] = []
        self._nodes = nodes
        self.session = DatabaseSession(url, place="the test's database", draw=lambda: 0)
        identity = NodeIdentity(
            id=f"{name}/{next(_numbers)}",
            node=name,
            host=name,
            advertise_url=f"http://{name}:1",
            version="1",
            secret=SECRET,
            store="bucket b",
            is_only_process=False,
        )
        self.membership = Membership(identity, self.session, timer=self.timer, sleep=asyncio.sleep)
        self.leases = NodeLeases(self.session, self.membership, local, grace_s=GRACE_S, timer=self.timer)
        beside: World | None = next(iter(nodes.values())).world if nodes else None
        self.world: World = World(beside=beside, cluster=Cluster(self.leases, self))
        nodes[identity.id] = self

    @property
    def id(self) -> str:
        return self.membership.id

    def timer(self) -> float:
        return time.monotonic() + self.offset_s

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LeaseNode]:
        task = asyncio.create_task(self.session.run())
        try:
            await self.session.attempted.wait()
            yield self
        finally:
            await self.world.image_service.aclose()
            await self.leases.aclose()
            task.cancel()
            await asyncio.wait([task])

    async def rows(self) -> list[tuple[object, ...]]:
        """Return name, member, `stored` and whether there is a failure of each lease, once all releases are sent."""
        statement: LiteralString = "SELECT name, member, stored, failure IS NOT NULL FROM cluster_leases ORDER BY name"
        await self.sent()
        return await self.session.execute(statement)

    async def sent(self) -> None:
        """Wait until this node has sent all releases."""
        task = self.leases._release_task
        if task is not None:
            await asyncio.wait([task])

    # The peers of this node

    @asynccontextmanager
    async def follow(self, holder: str, name: str) -> AsyncIterator[RemoteFill | FillFailure | None]:
        joined = await self._find(holder).world.image_service.join_for_peer(name)
        if joined is None or isinstance(joined, FillFailure):
            yield joined
            return
        body, head = joined
        try:
            yield RemoteFill(head, None, _read_all(body))
        finally:
            await body.aclose()

    async def wait(self, holder: str, key: str) -> None:
        await self._find(holder).world.image_service.wait_for_fill(Key(key))

    async def notify(self, **_what: object) -> None:
        """The others know."""

    def _find(self, holder: str) -> LeaseNode:
        self.followed.append(holder)
        node = self._nodes[holder]
        if node.is_cut_off:
            raise Busy("the member cannot be reached")
        return node


@asynccontextmanager
async def lease_nodes(url: str, *names: str) -> AsyncIterator[list[LeaseNode]]:
    """Run nodes on the same stores and the same database, which know of each other."""
    nodes: dict[str, LeaseNode] = {}
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(LeaseNode(url, name, nodes).running())
        for node in nodes.values():
            await node.membership.beat()
        yield list(nodes.values())


async def _read_all(body: SharedBody[FillHead]) -> AsyncIterator[tuple[int, bytes]]:
    offset = 0
    while data := await body.read(offset, 10_000):
        offset += len(data)
        yield offset, data
