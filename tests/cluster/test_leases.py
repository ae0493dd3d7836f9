"""What leases promise: one worker at a time, and nobody misses what was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from imgkeep.cluster.leases import FillLeases, LeaderLock

from tests.support.fakes import Timer

if TYPE_CHECKING:
    from pathlib import Path

KEY = "a" * 64


@pytest.fixture
def timer() -> Timer:
    return Timer()


def leases(folder: Path, name: str, timer: Timer) -> FillLeases:
    return FillLeases(folder, name, grace_s=10, timer=timer)


def test_the_first_has_it_and_others_are_told_who(tmp_path: Path, timer: Timer) -> None:
    first, second = leases(tmp_path, "0.1", timer), leases(tmp_path, "1.2", timer)
    assert first.acquire(KEY) is None
    assert second.acquire(KEY) == "0.1"
    assert first.acquire(KEY) is None
    second.release(KEY)  # not theirs
    assert second.acquire(KEY) == "0.1"
    first.release(KEY)
    assert second.acquire(KEY) is None
    assert first.acquire(KEY) == "1.2"


def test_a_claim_on_what_was_kept_lingers_until_every_look_up_began_later(tmp_path: Path, timer: Timer) -> None:
    first, second = leases(tmp_path, "0.1", timer), leases(tmp_path, "1.2", timer)
    first.acquire(KEY)
    first.release(KEY, stored=True)
    timer.seconds += 9
    assert second.acquire(KEY) == "0.1"
    # What is claimed again, by its holder, is not let go for the time that it lingered before.
    assert first.acquire(KEY) is None
    timer.seconds += 2
    first.acquire("b" * 64)
    assert second.acquire(KEY) == "0.1"
    first.release(KEY, stored=True)
    timer.seconds += 10
    first.release("b" * 64)
    assert second.acquire(KEY) is None


def test_few_are_let_go_at_a_time_and_all_in_the_end(tmp_path: Path, timer: Timer) -> None:
    first = leases(tmp_path, "0.1", timer)
    for number in range(100):
        first.acquire(str(number))
        first.release(str(number), stored=True)
    timer.seconds += 10
    left = []
    for _ in range(10):
        first.release("none of ours")
        first.acquire("x")
        left.append(len(list(tmp_path.iterdir())) - 1)
    assert left[0] >= 100 - 2 * 16
    assert left[-1] == 0


def test_nothing_is_left_at_the_end(tmp_path: Path, timer: Timer) -> None:
    first = leases(tmp_path, "0.1", timer)
    for key in ("a", "b", "c"):
        first.acquire(key)
    first.release("b", stored=True)
    first.aclose()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_keeps_nobody_from_fetching(tmp_path: Path, timer: Timer) -> None:
    orphan = leases(tmp_path / "gone", "0.1", timer)
    assert orphan.acquire(KEY) is None
    orphan.release(KEY, stored=True)
    orphan.aclose()


def test_turns_are_taken_one_after_the_other(tmp_path: Path) -> None:
    first, second = LeaderLock(tmp_path, "0.1"), LeaderLock(tmp_path, "1.2")
    assert first.acquire()
    assert not second.acquire()
    assert (first.is_held, second.is_held) == (True, False)
    assert str((tmp_path / "works").readlink()) == "0.1"
    first.release()
    assert second.acquire()
    assert str((tmp_path / "works").readlink()) == "1.2"
    second.release()
