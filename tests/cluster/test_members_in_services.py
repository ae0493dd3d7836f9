"""What a member makes of the others: its part in the limits per client, and its part of `/readyz`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from imgkeep.bootstrap.cluster import ClusterParts, open_cluster
from imgkeep.bootstrap.platform import Platform
from imgkeep.cluster.nodes.change_reader import Receiver
from imgkeep.cluster.workers.worker_info import WorkerInfo
from imgkeep.config import load
from imgkeep.database import DatabaseEngine
from tests.support.change_nodes import Learner
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def member(name: str, folder: Path, url: str) -> AsyncIterator[ClusterParts]:
    """Run a member of a cluster, with a heartbeat at the test's word alone."""
    cluster = {"name": name, "secret": "s" * 32, "advertise_url": f"http://{name}:1"}
    store = {"url": "s3://images?region=us-east-1", "fallback": f"file:{folder}/{name}"}
    config = load({"store": store, "database": {"url": url}, "cluster": cluster}, {})
    async with open_cluster(config, Platform(), None, lambda _: None) as parts:
        assert parts.nodes is not None
        learner = Learner()
        receiver = Receiver(learner.learn, learner.learn_everything, learner.settle)
        tasks = await parts.nodes.start(parts.nodes.make_reader(receiver))
        try:
            yield parts
        finally:
            await parts.nodes.membership.leave()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_limits_follow_the_members(tmp_path: Path, postgresql_url: str) -> None:
    engine = DatabaseEngine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"), FakeClock())
    await engine.open()
    await engine.aclose()
    async with member("a", tmp_path, postgresql_url) as first:
        assert first.nodes is not None
        assert first.limit_share.members == 1
        async with AsyncExitStack() as others:
            for name in ("b", "c"):
                await others.enter_async_context(member(name, tmp_path, postgresql_url))
            await first.nodes.membership.beat()
            assert first.limit_share.members == 3
            state = first.nodes.describe()
            assert state.fault is None
            assert state.facts["id"] == first.nodes.membership.id
            assert (state.facts["state"], state.facts["silence_s"]) == ("joined", 0)
            assert [each["node"] for each in state.facts["members"]] == ["a", "b", "c"]  # type: ignore[attr-defined]
        await first.nodes.membership.beat()
        assert first.limit_share.members == 1
        await first.nodes.membership.leave()
        assert "catching up: the database has not confirmed it" in str(first.nodes.describe().fault)


def test_workers_of_one_machine_divide_the_limits(tmp_path: Path) -> None:
    worker = WorkerInfo("w", 0, 4, str(tmp_path), "secret")
    assert ClusterParts(worker).limit_share.members == 4
    assert ClusterParts().limit_share.members == 1
