"""How we are, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass

from imgkeep.core.errors import StorageError
from imgkeep.health import Health


@dataclass
class Part:
    free_bytes: int = 1000
    fault: StorageError | None = None

    async def check(self) -> int:
        if self.fault is not None:
            raise self.fault
        return self.free_bytes


async def test_health_goes_from_unready_to_ready_to_degraded_and_back() -> None:
    store, database = Part(), Part(0)
    health = Health(store, database, free_bytes_min=500)
    assert (health.report(in_full=True)[0], health.report(in_full=True)[1]["status"]) == (False, "unready")
    await health.look()
    assert (health.report(in_full=True)[0], health.report(in_full=True)[1]["status"]) == (True, "ready")
    store.fault, database.fault = StorageError("store down"), StorageError("database down")
    await health.look()
    welcome, report = health.report(in_full=True)
    assert (welcome, report["status"]) == (True, "degraded")
    assert report["store"] == {"status": "failing", "reason": "store down"}
    assert report["database"] == {"status": "failing", "reason": "database down"}
    store.fault = database.fault = None
    store.free_bytes = 499
    await health.look()
    assert health.report(in_full=True)[1]["disk"] == {
        "status": "failing",
        "reason": "less than store.free_bytes_min is free",
    }
    store.free_bytes = 500
    await health.look()
    assert health.report(in_full=True)[1]["status"] == "ready"


async def test_a_fault_met_at_work_stands_until_a_look_finds_the_part_working() -> None:
    health = Health(Part(), Part(0), free_bytes_min=0)
    await health.look()
    health.note("store", "the disk is full")
    assert health.report(in_full=True)[1]["status"] == "degraded"
    await health.look()
    assert health.report(in_full=True)[1]["status"] == "ready"


async def test_draining_wins_over_everything() -> None:
    health = Health(Part(), Part(0), free_bytes_min=0)
    health.draining = True
    assert (health.report(in_full=True)[0], health.report(in_full=True)[1]["status"]) == (False, "draining")
