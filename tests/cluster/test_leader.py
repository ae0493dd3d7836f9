"""The leader's lock: one holder at a time, and a link that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.cluster.workers.leader import NodeLeader
from imgkeep.cluster.workers.worker_info import SharedFolder

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_worker_at_a_time_is_the_leader(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path)
    first, second = NodeLeader(folder, "0.1"), NodeLeader(folder, "1.2")
    assert await first.acquire()
    assert not await second.acquire()
    assert (first.is_held, second.is_held) == (True, False)
    assert str(folder.leader.readlink()) == "0.1"
    await first.release()
    assert await second.acquire()
    assert str(folder.leader.readlink()) == "1.2"
    await second.release()


async def test_leftover_of_a_failed_attempt_is_no_obstacle(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path)
    (tmp_path / "leader.0.1").symlink_to("0.1")
    lock = NodeLeader(folder, "0.1")
    assert await lock.acquire()
    await lock.release()
