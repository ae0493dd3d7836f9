"""Members of a cluster that tell each other of changes: all but the services, on one PostgreSQL, in one process."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgkeep.cluster.nodes.change_reader import ChangeReader, Receiver
from imgkeep.cluster.nodes.change_writer import ChangeWriter
from imgkeep.cluster.nodes.membership import Membership
from imgkeep.database import DatabaseEngine
from imgkeep.images.cache_trust import CacheTrust
from tests.support.clock import FakeClock
from tests.support.members import make_identity, make_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from imgkeep.core.errors import StorageError

STALE_MAX_S = 30.0


async def make_tables(url: str) -> str:
    """Make the tables of an empty database; return its URL."""
    engine = DatabaseEngine(url.replace("postgresql:", "postgresql+psycopg:"), FakeClock())
    await engine.open()
    await engine.aclose()
    return url


class Learner:
    """What a member knows: it notes what it learns, as long as a test lets it."""

    def __init__(self) -> None:
        self.blocked: list[str] = []
        self.changed: list[str] = []
        self.unblocked: list[str] = []
        self.read_anew = 0
        self.settled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: StorageError | None = None

    async def learn(
        self,
        blocked: Collection[str],
        changed: Collection[str],
        copies: Mapping[str, int],
        unblocked: Collection[str],
    ) -> None:
        assert not copies
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.blocked += blocked
        self.changed += changed
        self.unblocked += unblocked

    async def learn_everything(self) -> None:
        self.read_anew += 1

    async def settle(self) -> None:
        self.settled += 1


class ChangeNode:
    """One process, whose timer a test can move. `receiver`: what applies the changes; `None`: its learner."""

    def __init__(self, url: str, name: str, receiver: Receiver | None = None) -> None:
        self.offset_s = 0.0
        self.session = make_session(url)
        identity = make_identity(name)
        self.membership = Membership(identity, self.session, timer=self.timer, sleep=asyncio.sleep)
        self.trust = CacheTrust(self.timer)
        self.writer = ChangeWriter(self.session, identity.id, timer=self.timer, sleep=asyncio.sleep)
        self.learner = Learner()
        learner = self.learner
        self.reader = ChangeReader(
            self.session,
            self.membership,
            Receiver(learner.learn, learner.learn_everything, learner.settle) if receiver is None else receiver,
            writer=self.writer,
            trust=self.trust,
            stale_max_s=STALE_MAX_S,
            timer=self.timer,
            sleep=self.wait,
        )

    @property
    def id(self) -> str:
        return self.membership.id

    def timer(self) -> float:
        return time.monotonic() + self.offset_s

    async def wait(self, _seconds: float) -> None:
        await asyncio.sleep(0.01)

    async def applied(self) -> int:
        """Return what the database has of this member; -1: nothing."""
        rows = await self.session.execute("SELECT applied FROM cluster_members WHERE id = %s", (self.id,))
        return int(rows[0][0]) if rows else -1

    @asynccontextmanager
    async def running(self, *, reads: bool = True) -> AsyncIterator[ChangeNode]:
        """Run the session and the reader until the end of the block; the test sends the heartbeats."""
        tasks = [asyncio.create_task(self.session.run())]
        if reads:
            tasks.append(asyncio.create_task(self.reader.run()))
        try:
            await self.session.attempted.wait()
            yield self
        finally:
            self.learner.gate.set()
            await self.writer.aclose()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
