"""Members of a cluster that only run jobs: session, membership, database and runner of each, in one process."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from imgkeep.bootstrap.job_runner import make_job_runner
from imgkeep.bootstrap.nodes import make_nodes
from imgkeep.bootstrap.platform import Platform
from imgkeep.clock import read_clock
from imgkeep.cluster.nodes.member import NodeIdentity
from imgkeep.cluster.nodes.membership import Membership
from imgkeep.core.errors import OriginError
from imgkeep.database import Database
from imgkeep.database.job_notices import CHANNEL
from imgkeep.database.session import DatabaseSession
from imgkeep.images.inspect import make_inspector
from imgkeep.images.upload import Saved
from tests.support.server import configuration
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from imgkeep.core.jobs import Job
    from imgkeep.core.records import Source
    from imgkeep.images.upload import Saver
    from imgkeep.origin import OriginClient

NUMBERS = count(1)


class Fetcher:
    """
    Takes the place of fills and of the client that sends webhooks: asks the origin, and stores nothing.

    Attributes:
        running: How many fetches run.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.running = 0

    async def save_link(self, source: Source) -> Saved:
        self.running += 1
        try:
            async with self._session.get(source.url) as response:
                body = await response.read()
                if response.status != 200:
                    raise OriginError("the origin failed", origin_status=response.status)
                return Saved(record_of(body), created=True)
        finally:
            self.running -= 1

    async def post(self, source: Source, body: bytes, headers: Mapping[str, str]) -> int:
        async with self._session.post(source.url, data=body, headers=dict(headers)) as response:
            return response.status


class JobMember:
    """
    One member.

    Attributes:
        offset_s: Seconds by which its timer is ahead of this machine's.
        notices: The notices about jobs that it got.
        outcomes: The outcomes of its attempts.
    """

    def __init__(self, url: str, folder: Path, session: aiohttp.ClientSession) -> None:
        self.offset_s = 0.0
        name = f"node{next(NUMBERS)}"
        self.session = DatabaseSession(url, place="the test's database", draw=lambda: 0)
        identity = NodeIdentity(
            id=f"{name}/1",
            node=name,
            host=name,
            advertise_url=f"http://{name}:1",
            version="1",
            secret="s" * 32,
            store="bucket",
            is_only_process=True,
        )
        self.membership = Membership(identity, self.session, timer=self.timer, sleep=asyncio.sleep)
        self.database = Database(url.replace("postgresql:", "postgresql+psycopg:"), read_clock, member=identity.id)
        config = configuration(folder, security={"signing_keys": ["a-key-for-signing-webhooks"]})
        platform = Platform(timer=self.timer)
        self.fetcher = Fetcher(session)
        fetcher: Any = self.fetcher
        self.outcomes: list[str] = []
        self.runner = make_job_runner(
            config,
            platform,
            database=self.database,
            inspector=make_inspector(config, platform.clock),
            saver=cast("Saver", fetcher),
            messenger=cast("OriginClient", fetcher),
            count=self.outcomes.append,
            nodes=make_nodes(self.session, self.membership, platform, stale_max_s=30),
        )
        self.notices: list[str] = []
        self.session.listen(CHANNEL, self.notices.append)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def id(self) -> str:
        return self.membership.id

    def timer(self) -> float:
        return time.monotonic() + self.offset_s

    async def start(self) -> None:
        """Join, and run jobs."""
        await self.database.open()
        self._tasks.append(asyncio.create_task(self.session.run()))
        await self.session.attempted.wait()
        self._tasks.append(asyncio.create_task(self.membership.run()))
        self.run()

    def run(self) -> None:
        """Run jobs."""
        self._tasks.append(asyncio.create_task(self.runner.run()))

    async def stop_running(self) -> None:
        """End the runner as a member does that ends."""
        await _end(self._tasks.pop())

    async def stop(self) -> None:
        for task in reversed(self._tasks):
            await _end(task)
        await self.database.aclose()

    async def find(self, job: Job) -> Job:
        found = await self.runner.find(job.id)
        assert found is not None
        return found

    async def wait_for_end(self, job: Job) -> Job:
        """Wait as a request with `wait` does, for a notice and no longer than a look into the table is late."""
        with self.runner.watch(job.id) as changed:
            while (found := await self.find(job)).finished_at is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), 5)
                changed.clear()
        return found


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def job_members(number: int, url: str, folder: Path) -> AsyncGenerator[list[JobMember]]:
    """Run so many members until the end of the block."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        members = [JobMember(url, folder, session) for _ in range(number)]
        try:
            for member in members:
                await member.start()
            yield members
        finally:
            for member in members:
                await member.stop()
