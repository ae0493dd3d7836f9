"""The circuit breaker: one failure opens it, and only a probe in the background closes it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import RemoteFault, StorageError
from imgkeep.replication import circuit_breaker as module
from imgkeep.replication.circuit_breaker import CircuitBreaker
from tests.support.fakes import Timer
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Probe:
    def __init__(self) -> None:
        self.fails = True
        self.count = 0
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.count += 1
        if self.fails:
            raise self.error or StorageError(f"probe {self.count}")


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
async def breaker(probe: Probe, timer: Timer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CircuitBreaker]:
    monkeypatch.setattr(module, "DELAY_MIN_S", 0.001)
    monkeypatch.setattr(module, "DELAY_MAX_S", 0.004)
    breaker = CircuitBreaker(probe, place="a bucket", draw=lambda: 0.5, timer=timer, sleep=asyncio.sleep)
    task = asyncio.create_task(breaker.run())
    yield breaker
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def is_closed(breaker: CircuitBreaker) -> bool:
    return breaker.reason is None


async def turn_loop() -> None:
    """Let every task run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_closed_breaker_sends_no_probe(breaker: CircuitBreaker, probe: Probe) -> None:
    await turn_loop()
    assert (breaker.reason, probe.count) == (None, 0)


async def test_only_a_probe_that_works_closes_the_breaker(breaker: CircuitBreaker, probe: Probe) -> None:
    breaker.trip(StorageError("first"))
    assert (breaker.reason, breaker.in_full) == ("first", "first (a bucket)")
    await until(lambda: probe.count >= 3)
    assert breaker.reason is not None
    assert breaker.reason.startswith("probe"), "the last reason"
    probe.fails = False
    await until(lambda: is_closed(breaker))


async def test_fault_of_one_object_has_a_probe_decide(breaker: CircuitBreaker, probe: Probe, timer: Timer) -> None:
    probe.fails = False
    breaker.report_failure(RemoteFault("this one cannot be read", general=False))
    await until(lambda: probe.count == 1)
    assert breaker.reason is None
    probe.fails = True
    breaker.report_failure(RemoteFault("nor this one, a moment later", general=False))
    await turn_loop()
    assert probe.count == 1, "one probe a second"
    timer.seconds += 1
    breaker.report_failure(RemoteFault("nor this one", general=False))
    await until(lambda: not is_closed(breaker))


async def test_check_probes_for_all_that_ask(breaker: CircuitBreaker, probe: Probe, timer: Timer) -> None:
    probe.fails = False
    assert await breaker.check()
    assert (breaker.reason, probe.count) == (None, 1)
    timer.seconds += 1
    probe.fails = True
    assert await asyncio.gather(*(breaker.check() for _ in range(3))) == [False] * 3
    assert (breaker.reason, probe.count) == ("probe 2", 2)


async def test_general_fault_opens_at_once(breaker: CircuitBreaker) -> None:
    breaker.report_failure(RemoteFault("it cannot be reached"))
    assert breaker.reason == "it cannot be reached"


async def test_unexpected_error_of_a_probe_is_not_the_last_probe(breaker: CircuitBreaker, probe: Probe) -> None:
    probe.error = ValueError("what is this")
    breaker.trip(StorageError("first"))
    await until(lambda: probe.count >= 2)
    assert breaker.reason == "the primary store gave an unexpected answer"
    probe.fails = False
    await until(lambda: is_closed(breaker))


async def test_outage_is_logged_once_a_minute_at_most(
    breaker: CircuitBreaker, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    probe.fails = False
    for _ in range(5):
        breaker.trip(StorageError("again"))
        breaker.trip(StorageError("again"))
        await until(lambda: is_closed(breaker))
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
