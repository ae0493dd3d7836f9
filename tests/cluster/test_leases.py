"""Leases: one worker at a time fills a key, and no worker misses what another one has stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.workers.leases import EXPIRED_MAX, WorkerLeases, remove_leases_of
from tests.support.fakes import Timer

if TYPE_CHECKING:
    from pathlib import Path

KEY = "a" * 64


@pytest.fixture
def timer() -> Timer:
    return Timer()


def open_leases(folder: Path, name: str, timer: Timer) -> WorkerLeases:
    return WorkerLeases(folder, name, grace_s=10, timer=timer)


def test_second_worker_learns_the_holder(tmp_path: Path, timer: Timer) -> None:
    first, second = open_leases(tmp_path, "0.1", timer), open_leases(tmp_path, "1.2", timer)
    assert first.acquire(KEY) is None
    assert second.acquire(KEY) == "0.1"
    assert first.acquire(KEY) is None
    second.release(KEY)  # which it does not hold
    assert second.acquire(KEY) == "0.1"
    first.release(KEY)
    assert second.acquire(KEY) is None
    assert first.acquire(KEY) == "1.2"


def test_lease_of_a_stored_image_stays_for_its_grace_period(tmp_path: Path, timer: Timer) -> None:
    first, second = open_leases(tmp_path, "0.1", timer), open_leases(tmp_path, "1.2", timer)
    first.acquire(KEY)
    first.release(KEY, stored=True)
    timer.seconds += 9
    assert second.acquire(KEY) == "0.1"
    # The holder acquires it again: the end of the earlier grace period no longer counts.
    assert first.acquire(KEY) is None
    timer.seconds += 2
    first.acquire("b" * 64)
    assert second.acquire(KEY) == "0.1"
    first.release(KEY, stored=True)
    timer.seconds += 10
    first.release("b" * 64)
    assert second.acquire(KEY) is None


def test_expired_leases_are_removed_a_few_at_a_time(tmp_path: Path, timer: Timer) -> None:
    first = open_leases(tmp_path, "0.1", timer)
    for number in range(100):
        first.acquire(str(number))
        first.release(str(number), stored=True)
    timer.seconds += 10
    left = []
    for _ in range(10):
        first.release("not held")
        first.acquire("x")
        left.append(len(list(tmp_path.iterdir())) - 1)
    assert left[0] >= 100 - 2 * EXPIRED_MAX
    assert left[-1] == 0


def test_close_releases_all_leases(tmp_path: Path, timer: Timer) -> None:
    first = open_leases(tmp_path, "0.1", timer)
    for key in ("a", "b", "c"):
        first.acquire(key)
    first.release("b", stored=True)
    first.aclose()
    assert list(tmp_path.iterdir()) == []


def test_supervisor_removes_the_leases_of_a_dead_worker_alone(tmp_path: Path, timer: Timer) -> None:
    dead, alive = open_leases(tmp_path, "0.1", timer), open_leases(tmp_path, "0.11", timer)
    dead.acquire("a")
    alive.acquire("b")
    remove_leases_of("0.1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert alive.acquire("a") is None
    remove_leases_of("0.1", tmp_path / "gone")


def test_worker_without_a_folder_fetches(tmp_path: Path, timer: Timer) -> None:
    orphan = open_leases(tmp_path / "gone", "0.1", timer)
    assert orphan.acquire(KEY) is None
    orphan.release(KEY, stored=True)
    orphan.aclose()
