"""One failure opens, a trial behind everybody's back closes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from imgkeep.core.errors import RemoteFault, StorageError
from imgkeep.replication import circuit_breaker as module
from imgkeep.replication.circuit_breaker import CircuitBreaker

from tests.support.fakes import Timer
from tests.support.program import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Trial:
    def __init__(self) -> None:
        self.fails = True
        self.count = 0
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.count += 1
        if self.fails:
            raise self.error or StorageError(f"trial {self.count}")


@pytest.fixture
def trial() -> Trial:
    return Trial()


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
async def breaker(trial: Trial, timer: Timer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CircuitBreaker]:
    monkeypatch.setattr(module, "DELAY_MIN_S", 0.001)
    monkeypatch.setattr(module, "DELAY_MAX_S", 0.004)
    breaker = CircuitBreaker(trial, draw=lambda: 0.5, timer=timer, sleep=asyncio.sleep)
    task = asyncio.create_task(breaker.run())
    yield breaker
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_it_is_closed_until_it_trips_and_nobody_tries_before(breaker: CircuitBreaker, trial: Trial) -> None:
    await asyncio.sleep(0.01)
    assert (breaker.reason, breaker.closed.is_set(), trial.count) == (None, True, 0)


async def test_it_tells_the_last_reason_and_closes_only_after_a_trial_that_works(
    breaker: CircuitBreaker, trial: Trial
) -> None:
    told: list[str | None] = []
    breaker.tell = told.append
    breaker.trip(StorageError("first"))
    assert breaker.reason == "first"
    async with asyncio.timeout(20):
        while trial.count < 3:  # noqa: ASYNC110 - the trial tells nobody
            await asyncio.sleep(0)
    assert breaker.reason is not None
    assert breaker.reason.startswith("trial")
    trial.fails = False
    async with asyncio.timeout(20):
        await breaker.closed.wait()
    assert breaker.reason is None
    assert (told[0], told[-1]) == ("first", None)


async def test_what_concerns_one_object_has_a_trial_tell_and_closes_nothing_to_others(
    breaker: CircuitBreaker, trial: Trial, timer: Timer
) -> None:
    trial.fails = False
    breaker.report_failure(RemoteFault("this one cannot be read", general=False))
    await until(lambda: trial.count == 1)
    assert breaker.reason is None
    trial.fails = True
    breaker.report_failure(RemoteFault("nor this one, a moment later", general=False))
    await asyncio.sleep(0.01)
    assert trial.count == 1, "nobody tries for every object"
    timer.seconds += 1
    breaker.report_failure(RemoteFault("nor this one", general=False))
    await until(lambda: breaker.reason is not None)


async def test_a_general_fault_opens_at_once(breaker: CircuitBreaker) -> None:
    breaker.report_failure(RemoteFault("it cannot be reached"))
    assert breaker.reason == "it cannot be reached"


async def test_a_trial_that_fails_as_nobody_foresaw_is_not_the_last(breaker: CircuitBreaker, trial: Trial) -> None:
    trial.error = ValueError("what is this")
    breaker.trip(StorageError("first"))
    await until(lambda: trial.count >= 2)
    assert breaker.reason == "the primary store answers what nobody foresaw"
    trial.fails = False
    async with asyncio.timeout(20):
        await breaker.closed.wait()


async def test_an_outage_is_logged_once_a_minute_at_most(
    breaker: CircuitBreaker, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    trial.fails = False
    for _ in range(5):
        breaker.trip(StorageError("again"))
        breaker.trip(StorageError("again"))
        async with asyncio.timeout(20):
            await breaker.closed.wait()
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
