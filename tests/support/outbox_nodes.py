"""Nodes with a PostgreSQL and a bucket behind a gate, as far as their storages go: fallback, outbox and its worker."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgkeep.bootstrap.storage import StorageSharing, open_storage
from imgkeep.clock import read_clock
from imgkeep.core.errors import StorageError
from imgkeep.replication.outbox_worker import OutboxWorker
from tests.support.server import configuration
from tests.support.stores import record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from imgkeep.bootstrap.storage import RemoteStorage, Storage
    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.database import Database, ImageIndex, Outbox
    from imgkeep.replication.tiered_store import TieredStore
    from imgkeep.storage.interfaces import Body


@dataclass
class OutboxNode:
    """
    A node without a server.

    Attributes:
        asked: The names of objects that another node was asked for.
        cut_off: Nodes that this one cannot reach.
        blocked: The digests that it knows as blocked.
        dropped: The keys of images that its worker has dropped.
    """

    name: str
    storage: Storage
    asked: list[str]
    cut_off: set[str]
    blocked: set[Digest] = field(default_factory=set)
    dropped: list[Key] = field(default_factory=list)

    @property
    def remote(self) -> RemoteStorage:
        assert self.storage.remote is not None
        return self.storage.remote

    @property
    def store(self) -> TieredStore:
        return self.remote.tiered_store

    @property
    def database(self) -> Database:
        return self.storage.database

    @property
    def index(self) -> ImageIndex:
        return self.database.image_index

    @property
    def outbox(self) -> Outbox:
        return self.database.outbox

    async def put(self, body: bytes, *, name: str = "a") -> Record:
        """Store an image as a fill does, and wait until the other nodes see it in the index."""
        draft = await self.storage.spool.begin(len(body))
        await draft.write(body)
        try:
            record = await self.store.put(draft, record_of(body, name=name))
        finally:
            await draft.aclose()
        await self.index.put(record)
        await self.index.flush()
        return record

    async def read(self, record: Record) -> bytes | None:
        """Return the bytes of an image, `None`: it is not there."""
        body = await self.store.fetch(record.object_name, record.size)
        if body is None:
            return None
        try:
            return await read_whole(body)
        finally:
            await body.aclose()

    def lose_bucket(self) -> None:
        """Have the bucket away for this node."""
        self.remote.breaker.trip(StorageError("the bucket is away"))

    async def regain_bucket(self) -> None:
        """Have the bucket back."""
        task = asyncio.create_task(self.remote.breaker.run())
        await until(lambda: self.remote.breaker.reason is None)
        task.cancel()
        await asyncio.wait([task])

    async def work(self) -> int:
        """Upload what is due; return for how many images that was tried."""
        return await self._make_worker().replicate_due()

    async def enlist(self) -> None:
        """Bring what the fallback has into the outbox, as a start does."""
        await self._make_worker().enlist()
        await self.index.flush()

    async def waiting(self) -> int:
        """Return how many images wait on this node."""
        return (await self.outbox.backlog()).images

    def _make_worker(self) -> OutboxWorker:
        async def note_uploaded(record: Record) -> None:
            await self.index.put(record)
            await self.index.flush()

        async def note_dropped(key: Key) -> None:
            self.dropped.append(key)

        fallback = self.remote.fallback
        assert fallback is not None
        return OutboxWorker(
            tiered_store=self.store,
            fallback=fallback,
            outbox=self.outbox,
            image_index=self.index,
            blocked_digests=self.blocked,
            uploaded=note_uploaded,
            dropped=note_dropped,
            draw=lambda: 0,
            sleep=asyncio.sleep,
            count=lambda _: None,
        )


@asynccontextmanager
async def outbox_node(
    name: str, nodes: dict[str, OutboxNode], *, store: str, database: str, folder: Path
) -> AsyncGenerator[OutboxNode]:
    """Open a node, which reads objects from the others in `nodes`."""
    config = configuration(
        folder / name,
        store={"url": store, "fallback": f"file:{folder / name}", "timeout_s": 10},
        database={"url": database},
        cluster={"name": name},
    )
    asked: list[str] = []
    cut_off: set[str] = set()

    async def fetch_from_node(holder: str, wanted: str) -> Body | None:
        asked.append(wanted)
        if holder not in nodes or holder in cut_off:
            raise StorageError("the node cannot be reached")
        fallback = nodes[holder].remote.fallback
        assert fallback is not None
        return await fallback.fetch(wanted, None)

    sharing = StorageSharing(fetch_from_node=fetch_from_node)
    async with open_storage(config, clock=read_clock, sleep=_yield, sharing=sharing) as storage:
        nodes[name] = OutboxNode(name, storage, asked, cut_off)
        try:
            yield nodes[name]
        finally:
            del nodes[name]


async def _yield(_seconds: float) -> None:
    await asyncio.sleep(0)


async def read_whole(body: Body) -> bytes:
    """Read a body to its end."""
    pieces = []
    offset = 0
    while piece := await body.read(offset, 1 << 20):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)
