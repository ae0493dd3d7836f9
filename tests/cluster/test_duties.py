"""Which process runs what: the outbox once on each machine, other tasks once for all nodes; successors of leaders."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.http_context import open_context
from imgkeep.bootstrap.platform import Platform
from imgkeep.cluster.workers.worker_info import WorkerInfo
from imgkeep.core.errors import StorageError
from tests.support.server import configuration
from tests.support.waiting import until

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from imgkeep.bootstrap.background import BackgroundTasks
    from tests.support.postgresql import PostgresqlServer

LEADER_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = {}"
)


@pytest.fixture(autouse=True)
def no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


async def start(
    stack: AsyncExitStack, name: str, *, url: str, folder: Path, worker: WorkerInfo | None = None
) -> BackgroundTasks:
    """Start a process of a node: all of it but its listeners."""
    config = configuration(
        folder / name,
        store={"url": "s3://images?endpoint=http://127.0.0.1:1&region=us-east-1", "fallback": f"file:{folder / name}"},
        database={"url": url},
        cluster={"name": name, "secret": "s" * 32, "advertise_url": f"http://{name}:1"},
    )
    opening: AbstractAsyncContextManager[tuple[object, BackgroundTasks, object]]
    opening = open_context(config, Platform(), worker, has_fast_path=False)
    _, background, _ = await stack.enter_async_context(opening)
    return background


async def test_each_node_uploads_and_one_leads(postgresql_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        second = AsyncExitStack()
        async with second:
            ended = await start(second, "b", url=postgresql_url, folder=tmp_path)
            assert (ended.leads, ended.leads_node) == (True, True)
            left = await start(stack, "a", url=postgresql_url, folder=tmp_path)
            assert (left.leads, left.leads_node) == (False, True), "its outbox is on its disk"
        await until(lambda: left.leads)


async def test_workers_of_a_node_upload_once(postgresql_url: str, tmp_path: Path) -> None:
    shared = tmp_path / "run"
    (shared / "leases").mkdir(parents=True)
    workers = [WorkerInfo(f"{slot}.{slot + 1}", slot, 2, str(shared), "secret") for slot in range(2)]
    async with AsyncExitStack() as stack:
        both = [await start(stack, "a", url=postgresql_url, folder=tmp_path, worker=worker) for worker in workers]
        assert [each.leads_node for each in both] == [True, False]
        assert [each.leads for each in both] == [True, False]
        other = await start(stack, "b", url=postgresql_url, folder=tmp_path)
        assert (other.leads, other.leads_node) == (False, True)
        await both[0].resign()
        await until(lambda: both[1].leads_node)
        await until(lambda: sum(each.leads for each in (*both, other)) == 1)
        assert not both[0].leads
        assert not both[0].leads_node


async def test_leader_that_loses_its_session_leads_no_more(
    postgresql: PostgresqlServer, postgresql_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        both = [await start(stack, name, url=postgresql_url, folder=tmp_path) for name in "ab"]
        assert [each.leads for each in both] == [True, False]
        # As after a kill -9: PostgreSQL releases the lock with the connection.
        postgresql.execute(LEADER_SESSIONS.format(0x676B656C))
        assert both[0].cluster.nodes is not None
        with pytest.raises(StorageError):
            await both[0].cluster.nodes.membership.beat()  # which is at most five seconds away
        await until(lambda: not both[0].leads)
        await until(lambda: sum(each.leads for each in both) == 1)
        assert [each.leads_node for each in both] == [True, True]
