"""One running call per key, and its followers."""

from __future__ import annotations

import asyncio

import pytest

from imgkeep.images.singleflight import Call, SingleFlight


class FakeCall(Call):
    """A call that ends when the test says so, and notes how its followers are told."""

    def __init__(self, calls: SingleFlight[FakeCall], error: BaseException | None = None) -> None:
        self.may_end = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running_when_failed: int | None = None
        self.closed = 0
        self._calls = calls
        self._error = error

    async def run(self) -> None:
        await self.may_end.wait()
        if self._error is not None:
            raise self._error
        self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        self.running_when_failed = len(self._calls)
        self.ended.set_exception(RuntimeError(f"failed with {type(error).__name__}"))

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def calls() -> SingleFlight[FakeCall]:
    return SingleFlight()


async def test_concurrent_requests_share_one_call(calls: SingleFlight[FakeCall]) -> None:
    first, starts = calls.join("key", lambda: FakeCall(calls))
    second, starts_too = calls.join("key", lambda: FakeCall(calls))
    other, _ = calls.join("other", lambda: FakeCall(calls))
    assert first is second
    assert other is not first
    assert (starts, starts_too, len(calls)) == (True, False, 2)
    first.may_end.set()
    other.may_end.set()
    await calls.drain()
    assert (len(calls), first.closed) == (0, 1)


async def test_key_is_free_after_the_call(calls: SingleFlight[FakeCall]) -> None:
    first, _ = calls.join("key", lambda: FakeCall(calls))
    first.may_end.set()
    await calls.drain()
    second, starts = calls.join("key", lambda: FakeCall(calls))
    assert starts
    assert second is not first
    await calls.aclose()
    await asyncio.wait([second.ended])
    assert isinstance(second.ended.exception(), RuntimeError)


async def test_key_is_free_before_followers_learn_of_a_failure(calls: SingleFlight[FakeCall]) -> None:
    call, _ = calls.join("key", lambda: FakeCall(calls, ValueError("x")))
    call.may_end.set()
    with pytest.raises(RuntimeError, match="failed with ValueError"):
        await call.ended
    assert call.running_when_failed == 0
    await calls.drain()
    assert call.closed == 1


async def test_follower_that_leaves_does_not_stop_the_call(calls: SingleFlight[FakeCall]) -> None:
    call, _ = calls.join("key", lambda: FakeCall(calls))

    async def follow() -> None:
        await asyncio.shield(call.ended)

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    follower.cancel()
    await asyncio.wait([follower])
    call.may_end.set()
    await call.ended
    await calls.drain()


@pytest.mark.parametrize("started", [True, False], ids=["running", "before its first step"])
async def test_cancelled_call_fails_its_followers(calls: SingleFlight[FakeCall], started: bool) -> None:  # noqa: FBT001 - a table
    call, _ = calls.join("key", lambda: FakeCall(calls))
    if started:
        await asyncio.sleep(0)
    await calls.aclose()
    assert (len(calls), call.closed, call.ended.done()) == (0, 1, True)
    with pytest.raises(RuntimeError, match="failed with CancelledError"):
        await call.ended


async def test_call_that_starts_while_others_are_cancelled_is_told(calls: SingleFlight[FakeCall]) -> None:
    calls.join("key", lambda: FakeCall(calls))

    async def join_late() -> FakeCall:
        return calls.join("late", lambda: FakeCall(calls))[0]

    joining = asyncio.create_task(join_late())
    await calls.aclose()
    late = await joining
    assert (len(calls), late.closed, late.ended.done()) == (0, 1, True)
    with pytest.raises(RuntimeError, match="failed with CancelledError"):
        await late.ended


async def test_call_that_cannot_start_leaves_the_key_free(calls: SingleFlight[FakeCall]) -> None:
    def start() -> FakeCall:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it has no message
        calls.join("key", start)
    assert len(calls) == 0
