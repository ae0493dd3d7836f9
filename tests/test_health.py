"""The health of the process: its states, its parts, and what the report says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest

from imgkeep.core.errors import Busy, StorageError
from imgkeep.core.records import Backlog
from imgkeep.health import ClusterState, Health
from tests.support.stores import NOON
from tests.support.waiting import until


@dataclass
class Part:
    free_bytes: int = 1000
    fault: StorageError | Busy | None = None

    async def check(self) -> int:
        if self.fault is not None:
            raise self.fault
        return self.free_bytes


@pytest.fixture
def disk() -> Part:
    return Part()


@pytest.fixture
def database() -> Part:
    return Part(0)


@pytest.fixture
def health(disk: Part, database: Part) -> Health:
    return Health(disk, database, free_bytes_min=500, clock=lambda: NOON)


def state(health: Health) -> tuple[bool, object]:
    welcome, report = health.report(in_full=True)
    return welcome, report["status"]


async def test_health_goes_unready_ready_degraded_and_back(health: Health, disk: Part, database: Part) -> None:
    assert state(health) == (False, "unready")
    await health.check()
    assert state(health) == (True, "ready")
    disk.fault, database.fault = StorageError("store down"), StorageError("database down")
    await health.check()
    assert state(health) == (True, "degraded")
    _, report = health.report(in_full=True)
    assert report["store"] == {"status": "failing", "reason": "store down"}
    assert report["database"] == {"status": "failing", "reason": "database down"}
    assert report["fallback"] == {"status": "unused"}
    _, report = health.report(in_full=False)
    assert report["store"] == report["database"] == {"status": "failing"}
    disk.fault = database.fault = None
    await health.check()
    assert state(health) == (True, "ready")


async def test_part_that_hangs_delays_no_other(disk: Part, database: Part) -> None:
    health = Health(disk, database, free_bytes_min=500, clock=lambda: NOON, store=HangingPart())
    database.fault = StorageError("database down")
    checking = asyncio.create_task(health.check())
    await until(lambda: "database" in health.faults)
    assert health.faults["database"] == "database down"
    checking.cancel()


class HangingPart(Part):
    async def check(self) -> int:
        await asyncio.Event().wait()
        return 0


async def test_full_disk_is_a_failing_part(health: Health, disk: Part) -> None:
    disk.free_bytes = 499
    await health.check()
    _, report = health.report(in_full=True)
    assert report["disk"] == {"status": "failing", "reason": "less than store.free_bytes_min is free"}
    disk.free_bytes = 500
    await health.check()
    assert state(health) == (True, "ready")


async def test_noted_fault_stands_until_the_next_check(health: Health) -> None:
    await health.check()
    health.note_fault("store", "the disk is full")
    assert state(health) == (True, "degraded")
    await health.check()
    assert state(health) == (True, "ready")


async def test_draining_wins_over_every_state(health: Health) -> None:
    health.draining = True
    assert state(health) == (False, "draining")
    assert health.ending


def fallback_of(health: Health) -> object:
    return health.report(in_full=True)[1]["fallback"]


def test_backlog_is_unknown_before_the_first_look(health: Health) -> None:
    health.backlog = lambda: None
    assert fallback_of(health) == {"status": "ok", "waiting": None, "oldest_s": None, "last_error": None}
    assert health.oldest_waiting_s() == 0


@pytest.mark.parametrize(
    ("backlog", "waiting", "oldest_s"),
    [(Backlog(), 0, 0), (Backlog(3, NOON - timedelta(seconds=90), "the bucket answers 500"), 3, 90)],
    ids=["empty", "three images"],
)
def test_report_has_the_backlog(health: Health, backlog: Backlog, waiting: int, oldest_s: int) -> None:
    health.backlog = lambda: backlog
    expected = {"status": "ok", "waiting": waiting, "oldest_s": oldest_s, "last_error": backlog.error}
    assert fallback_of(health) == expected
    assert health.oldest_waiting_s() == oldest_s


async def test_outage_is_the_store_s_fault_until_it_ends(health: Health) -> None:
    outage: str | None = "the bucket cannot be reached"
    health.store = Part(0, StorageError("the bucket cannot be reached"))
    health.outage = lambda: outage
    await health.check()
    assert health.report(in_full=True)[1]["store"] == {"status": "failing", "reason": outage}
    assert state(health) == (True, "degraded")
    outage = None
    assert state(health) == (True, "ready"), "before the next check"


async def test_node_without_its_cluster_is_degraded(health: Health) -> None:
    state = ClusterState(None, {"id": "node1/a", "members": []})
    health.cluster = lambda: state
    assert health.report(in_full=True)[1]["status"] == "unready"
    await health.check()
    assert health.report(in_full=True)[1]["cluster"] == {"status": "ok", "id": "node1/a", "members": []}
    assert health.report(in_full=False)[1]["cluster"] == {"status": "ok"}
    state = ClusterState("not confirmed", {})
    assert health.report(in_full=False)[0]
    assert health.report(in_full=True)[1]["status"] == "degraded"
    assert health.report(in_full=True)[1]["cluster"] == {"status": "failing", "reason": "not confirmed"}


async def test_part_that_is_busy_stays_as_it_was(health: Health, disk: Part, database: Part) -> None:
    disk.fault, database.fault = StorageError("store down"), Busy("too many requests are under way")
    await health.check()
    disk.fault = Busy("too many requests are under way")
    await health.check()
    assert dict(health.faults) == {"store": "store down", "database": None}
