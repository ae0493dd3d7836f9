"""Nodes of a cluster in one process: each has an image service in memory, and leases in one PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from typing import TYPE_CHECKING

from imgkeep.cluster.nodes.leases import NodeLeases
from imgkeep.cluster.nodes.member import NodeIdentity
from imgkeep.cluster.nodes.membership import Membership
from imgkeep.core.errors import Busy
from imgkeep.core.records import Key
from imgkeep.database import DatabaseEngine
from imgkeep.database.session import DatabaseSession
from imgkeep.images.interfaces import Cluster
from imgkeep.images.peer_fill import FillFailure, RemoteFill
from tests.support.clock import FakeClock
from tests.support.fakes import World, without_query
from tests.support.leases import SharedLeases
from tests.support.temporary_links import NOW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import LiteralString

    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.images.fill import FillHead
    from imgkeep.images.interfaces import Leases
    from imgkeep.images.shared_body import SharedBody
    from tests.support.postgresql import PostgresqlServer

SECRET = "s" * 32
GRACE_S = 10.0
_numbers = count(1)


class LeaseNode:
    """One process of a node. `peers` reach the other processes of `nodes`, unless these are cut off."""

    def __init__(
        self,
        url: str,
        name: str,
        nodes: dict[str, LeaseNode],
        *,
        worker: str = "",
        local: Leases | None = None,
        identify: Callable[[Source], SourceInfo] = without_query,
    ) -> None:
        self.waits = 0
        self.may_wait = asyncio.Event()
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
        self.world: World = World(beside=beside, cluster=Cluster(self.leases, self), identify=identify)
        self.world.now = NOW
        nodes[identity.id] = self
        if worker:
            nodes[worker] = self

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
async def lease_nodes(
    url: str, *names: str, identify: Callable[[Source], SourceInfo] = without_query
) -> AsyncIterator[list[LeaseNode]]:
    """Run nodes on the same stores and the same database, which know of each other."""
    nodes: dict[str, LeaseNode] = {}
    for name in names:
        LeaseNode(url, name, nodes, identify=identify)
    async with _running(list(nodes.values())) as running:
        yield running


@asynccontextmanager
async def two_workers(url: str, *names: str) -> AsyncIterator[list[LeaseNode]]:
    """Run two workers of the node `a`, and other nodes."""
    nodes: dict[str, LeaseNode] = {}
    holders: dict[str, str] = {}
    workers = [
        LeaseNode(
            url,
            "a",
            nodes,
            worker=worker,
            local=SharedLeases(holders, worker),
        )
        for worker in ("0.1", "1.2")
    ]
    async with _running([*workers, *(LeaseNode(url, name, nodes) for name in names)]) as running:
        yield running


@asynccontextmanager
async def _running(nodes: list[LeaseNode]) -> AsyncIterator[list[LeaseNode]]:
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        for node in nodes:
            await node.membership.beat()
        yield nodes


@contextmanager
def lease_database(postgresql: PostgresqlServer) -> Iterator[str]:
    """Make a database with its tables until the end of the block; yield its URL."""
    url = postgresql.make_database()

    async def migrate() -> None:
        engine = DatabaseEngine(url.replace("postgresql:", "postgresql+psycopg:"), FakeClock())
        await engine.open()
        await engine.aclose()

    asyncio.run(migrate())
    yield url
    postgresql.drop_database(url)


async def _read_all(body: SharedBody[FillHead]) -> AsyncIterator[tuple[int, bytes]]:
    offset = 0
    while data := await body.read(offset, 10_000):
        offset += len(data)
        yield offset, data
