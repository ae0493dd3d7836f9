"""
The background tasks of a server, and which of them only the leader runs.

Rules:
- Every process watches its own health, learns of removals by itself, and reads the records of its memory again where
  another node may have overwritten them.
- Once on each machine, in the leader of its workers or in the only process: the outbox, whose bytes are on its disk.
- Once for all nodes, in their leader: the count of the stored images, a new image index from a folder, the aborts of
  unfinished uploads to a bucket, the deletion of old changes. With SQLite there is one node, and one leader for both.
- Jobs run in every member of a cluster, because the database reserves each link for one of them; with SQLite in the
  leader alone.
- A process that stops releases the leadership before its last requests end, so that another worker goes on at once.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep.bootstrap.gauges import watch_changes, watch_totals
from imgkeep.bootstrap.replication import make_record_settler
from imgkeep.bootstrap.storage import cancel
from imgkeep.core.errors import Busy, StorageError
from imgkeep.health import CHECK_INTERVAL_S
from imgkeep.images.stored_totals import StoredTotals
from imgkeep.maintenance.verify_reindex import reindex
from imgkeep.storage.bucket.live_check import try_public, try_public_picture

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

    from imgkeep.bootstrap.cluster import ClusterParts, Leader
    from imgkeep.bootstrap.nodes import Nodes
    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.services import Services
    from imgkeep.clock import Sleep
    from imgkeep.cluster.nodes.change_reader import ChangeReader
    from imgkeep.database import IncompatibleDatabase
    from imgkeep.replication.outbox_worker import OutboxWorker
    from imgkeep.storage.bucket.client import BucketClient

    Task = Coroutine[None, None, None]

LEADER_CHECK_INTERVAL_S: Final = 0.25
"""Interval in which a leader notices that it is none any more."""

LATE_JOBS_S: Final = 30
"""Time in which a draining worker may still create jobs, for requests that it began to serve before."""

LATE_JOBS_INTERVAL_S: Final = 10
"""Interval of reads for such jobs."""

UPLOADS_DELAY_S: Final = 30
"""Delay of the first look for unfinished uploads: a start has more urgent work, and may be one of many."""
UPLOADS_INTERVAL_S: Final = 21_600
"""Interval of looks for unfinished uploads: one request each."""

log = logging.getLogger(__name__)


class BackgroundTasks:
    """
    The background tasks of one process.

    Attributes:
        cluster: How this process shares the work with others.

    Args:
        services: The services that the tasks use.
        platform: The timer and `sleep`.
        outbox_worker: Uploads the outbox; `None`: there is no outbox.
        cluster: How this process shares the work with others.
    """

    def __init__(
        self, services: Services, platform: Platform, outbox_worker: OutboxWorker | None, cluster: ClusterParts
    ) -> None:
        self._services = services
        self._sleep = platform.sleep
        self._totals = StoredTotals(services.storage.database.image_index, platform.timer)
        self._outbox_worker = outbox_worker
        self.cluster = cluster
        self._nodes = cluster.nodes
        self._reader = None if cluster.nodes is None else _make_reader(services, cluster.nodes)
        self._node_leader, self._cluster_leader = cluster.node_leader, cluster.cluster_leader
        self._duties = self._assign_duties(cluster)
        self._resigned = asyncio.Event()
        watch_totals(services.metrics, self._totals, lambda: self.leads)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """
        Run the tasks until the end of the block.

        Raises:
            RefusedByCluster: The database belongs to another cluster.
        """
        tasks = []
        if self._nodes is not None and self._reader is not None:
            tasks = await self._nodes.start(self._reader)
        for leader in self._leaders:
            await leader.acquire()
        own = [asyncio.create_task(task) for task in self._list_tasks()]
        try:
            yield
        finally:
            # What this member has taken is free before it leaves: others know no more of it then.
            for task in reversed(own):
                await cancel(task)
            if self._nodes is not None:
                await self._nodes.writer.aclose()
                await self._nodes.membership.leave()
            for task in reversed(tasks):
                await cancel(task)

    async def resign(self) -> None:
        """Release the leadership, and wait until the leader's tasks have ended."""
        self._resigned.set()
        while any(leader.is_held for leader in self._leaders):  # noqa: ASYNC110 - its task releases it soon
            await asyncio.sleep(0.01)

    @property
    def found_incompatible(self) -> Sequence[asyncio.Event]:
        """Events of which one is set as soon as `incompatible` has an error."""
        own = self._services.storage.database.engine.found_incompatible
        return [own] if self._nodes is None else [own, self._nodes.membership.found_refused]

    @property
    def incompatible(self) -> IncompatibleDatabase | None:
        """Why this process can never use its database; `None`: it can, as far as it knows."""
        error = self._services.storage.database.engine.incompatible
        return self._nodes.membership.refused if error is None and self._nodes is not None else error

    @property
    def leads(self) -> bool:
        """Whether this process runs what has to run once for all."""
        return self._cluster_leader is None or self._cluster_leader.is_held

    @property
    def leads_node(self) -> bool:
        """Whether this process runs what has to run once on this machine: the outbox."""
        return self._node_leader is None or self._node_leader.is_held

    @property
    def _leaders(self) -> list[Leader]:
        return [leader for leader in self._duties if leader is not None]

    def _list_tasks(self) -> list[Task]:
        services = self._services
        tasks = [
            self._watch_health(),
            self._count_stored(),
            services.remover.run(self._sleep),
            services.derived.facts.run(self._sleep),
            _sample(services.metrics.process.take, services.derived.processes.sample_memory),
        ]
        if (remote := services.storage.remote) is not None:
            tasks.append(remote.breaker.run())
            if remote.public_access is not None and remote.public_url is not None:
                tasks.append(remote.public_access.run(partial(try_public, remote.bucket, remote.public_url)))
            access = services.derived.public_access
            if access is not None and remote.public_path is not None:
                tasks.append(access.run(partial(try_public_picture, remote.bucket, remote.public_path)))
        settler = make_record_settler(services)
        if settler is not None:
            tasks.append(settler.run(self._sleep))
        for leader, make_tasks in self._duties.items():
            tasks += make_tasks() if leader is None else [self._lead_when_elected(leader, make_tasks)]
        return tasks

    def _list_node_tasks(self) -> list[Task]:
        """List what has to run once on each machine: its fallback's images are on its disk."""
        return [] if self._outbox_worker is None else [self._outbox_worker.run()]

    def _list_job_tasks(self) -> list[Task]:
        return [self._services.jobs.run()]

    def _list_cluster_tasks(self) -> list[Task]:
        """List what has to run once for all."""
        remote, reader = self._services.storage.remote, self._reader
        tasks = [] if remote is None else [_abort_unfinished_uploads(remote.bucket.client, self._sleep)]
        return tasks if reader is None else [*tasks, reader.clean_up()]

    def _assign_duties(self, cluster: ClusterParts) -> dict[Leader | None, Callable[[], list[Task]]]:
        """Return which leader runs which tasks; `None`: every process does."""
        if cluster.nodes is None:
            leader = cluster.node_leader
            return {leader: lambda: self._list_job_tasks() + self._list_node_tasks() + self._list_cluster_tasks()}
        if cluster.node_leader is None:
            # The database tells the links of jobs apart that each member saves.
            return {
                None: lambda: self._list_job_tasks() + self._list_node_tasks(),
                cluster.nodes.leader: self._list_cluster_tasks,
            }
        return {
            None: self._list_job_tasks,
            cluster.node_leader: self._list_node_tasks,
            cluster.nodes.leader: self._list_cluster_tasks,
        }

    async def _lead_when_elected(self, leader: Leader, make_tasks: Callable[[], list[Task]]) -> None:
        """Wait for the leadership, and run the leader's tasks until this worker resigns, or loses it."""
        while not self._resigned.is_set():
            while not await leader.acquire():
                if await _is_set_within(self._resigned, leader.check_interval_s):
                    return
            log.info("leader elected", extra={"scope": leader.scope})
            tasks = [asyncio.create_task(task) for task in make_tasks()]
            try:
                await self._lead(leader)
            finally:
                for task in tasks:
                    await cancel(task)
                await leader.release()

    async def _lead(self, leader: Leader) -> None:
        """Wait until this worker resigns, or loses the leadership."""
        loop = asyncio.get_running_loop()
        late = [loop.time() + delay_s for delay_s in range(LATE_JOBS_INTERVAL_S, LATE_JOBS_S + 1, LATE_JOBS_INTERVAL_S)]
        while leader.is_held and not await _is_set_within(self._resigned, LEADER_CHECK_INTERVAL_S):
            if late and loop.time() >= late[0]:
                del late[0]
                self._services.jobs.poll_now()

    async def _count_stored(self) -> None:
        """Count the stored images, as the leader. Health does not wait for it: a count may take minutes."""
        while True:
            if self.leads:
                await self._totals.count_if_due()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _watch_health(self) -> None:
        """Watch the health of each part, and log what changes."""
        health, outbox = self._services.health, self._services.storage.database.outbox
        while True:
            await self._fill_index()
            await asyncio.sleep(CHECK_INTERVAL_S)
            before = dict(health.faults)
            await health.check()
            if self._outbox_worker is not None and not self.leads_node:
                with suppress(StorageError):
                    await outbox.backlog()  # for the report; the leader's outbox worker reads it by itself
            for part, fault in health.faults.items():
                if fault != before.get(part):
                    log.log(
                        logging.ERROR if fault else logging.INFO,
                        "part is failing" if fault else "part works again",
                        extra={"part": part, "reason": fault},
                    )

    async def _fill_index(self) -> None:
        """
        Fill an image index that is new or was lost, as the leader and from a disk. Of a bucket each record would be a
        request that is paid for; lookups find those one by one when they need them.
        """
        storage = self._services.storage
        index = storage.database.image_index
        if not self.leads or storage.remote is not None or index.complete or any(self._services.health.faults.values()):
            return
        with suppress(StorageError):
            images = await reindex(storage.archives, index)
            log.info("image index filled from the records", extra={"images": images})


def _make_reader(services: Services, nodes: Nodes) -> ChangeReader:
    """Make what applies changes of other members to these services."""
    from imgkeep.cluster.nodes.change_reader import Receiver  # noqa: PLC0415 - one node starts without it

    reader = nodes.make_reader(Receiver(services.learn, services.learn_everything, services.settle))
    watch_changes(services.metrics, reader)
    return reader


async def _abort_unfinished_uploads(client: BucketClient, sleep: Sleep) -> None:
    """Abort the uploads that killed processes have left in a bucket, soon after the start and in an interval."""
    reason: str | None = None
    await sleep(UPLOADS_DELAY_S)
    while True:
        try:
            if uploads := await client.abort_uploads():
                log.info("unfinished uploads aborted", extra={"uploads": uploads})
            reason = None
        except (StorageError, Busy) as fault:
            if reason is None:  # once: a missing right stays missing, and a lifecycle rule does the same
                log.warning("unfinished uploads not aborted", extra={"reason": str(fault)})
            reason = str(fault)
        await sleep(UPLOADS_INTERVAL_S)


async def _sample(*takes: Callable[[], None]) -> None:
    """Sample the metrics of this process and of those that it started, in a thread that nothing else waits for."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="process")
    try:
        while True:
            for take in takes:
                await asyncio.get_running_loop().run_in_executor(thread, take)
            await asyncio.sleep(CHECK_INTERVAL_S)
    finally:
        thread.shutdown(wait=False)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for at most `seconds`, and return whether it is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
