"""One flight per key; readers who follow a watermark."""

from __future__ import annotations

import asyncio

import pytest
from imgkeep.images.singleflight import SingleFlight, Watermark


class FakeCall:
    def __init__(self, flights: SingleFlight[FakeCall], error: BaseException | None = None) -> None:
        self.may_land = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_air_when_told: int | None = None
        self.closed = 0
        self._flights = flights
        self._error = error

    async def run(self) -> None:
        await self.may_land.wait()
        if self._error is not None:
            raise self._error
        self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        self.in_air_when_told = len(self._flights)
        self.ended.set_exception(RuntimeError(f"told of {type(error).__name__}"))

    async def aclose(self) -> None:
        self.closed += 1


async def test_who_asks_while_a_flight_is_in_the_air_joins_it() -> None:
    flights: SingleFlight[FakeCall] = SingleFlight()
    first, departs = flights.join("key", lambda: FakeCall(flights))
    second, departs_too = flights.join("key", lambda: FakeCall(flights))
    other, _ = flights.join("other", lambda: FakeCall(flights))
    assert first is second
    assert other is not first
    assert (departs, departs_too, len(flights)) == (True, False, 2)
    first.may_land.set()
    other.may_land.set()
    await flights.drain()
    assert (len(flights), first.closed) == (0, 1)


async def test_after_landing_the_key_is_free() -> None:
    flights: SingleFlight[FakeCall] = SingleFlight()
    first, _ = flights.join("key", lambda: FakeCall(flights))
    first.may_land.set()
    await flights.drain()
    second, departs = flights.join("key", lambda: FakeCall(flights))
    assert departs
    assert second is not first
    await flights.aclose()
    await asyncio.wait([second.ended])
    assert isinstance(second.ended.exception(), RuntimeError)


async def test_the_key_is_free_before_anybody_is_told_of_a_failure() -> None:
    flights: SingleFlight[FakeCall] = SingleFlight()
    flight, _ = flights.join("key", lambda: FakeCall(flights, ValueError("x")))
    flight.may_land.set()
    with pytest.raises(RuntimeError, match="told of ValueError"):
        await flight.ended
    assert flight.in_air_when_told == 0
    await flights.drain()
    assert flight.closed == 1


async def test_a_passenger_who_leaves_does_not_disturb_the_flight() -> None:
    flights: SingleFlight[FakeCall] = SingleFlight()
    flight, _ = flights.join("key", lambda: FakeCall(flights))

    async def ride() -> None:
        await asyncio.shield(flight.ended)

    passenger = asyncio.create_task(ride())
    await asyncio.sleep(0)
    passenger.cancel()
    await asyncio.wait([passenger])
    flight.may_land.set()
    await flight.ended
    await flights.drain()


@pytest.mark.parametrize("started", [True, False], ids=["in the air", "before its first step"])
async def test_breaking_off_tells_the_passengers(started: bool) -> None:  # noqa: FBT001 - a table
    flights: SingleFlight[FakeCall] = SingleFlight()
    flight, _ = flights.join("key", lambda: FakeCall(flights))
    if started:
        await asyncio.sleep(0)
    await flights.aclose()
    assert (len(flights), flight.closed, flight.ended.done()) == (0, 1, True)
    with pytest.raises(RuntimeError, match="told of CancelledError"):
        await flight.ended


async def test_a_departure_that_fails_leaves_the_key_free() -> None:
    flights: SingleFlight[FakeCall] = SingleFlight()

    def depart() -> FakeCall:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it has no message
        flights.join("key", depart)
    assert len(flights) == 0


async def test_readers_of_a_tide_wait_for_more_than_they_have() -> None:
    watermark = Watermark()
    readers = [asyncio.create_task(watermark.beyond(offset)) for offset in (0, 5, 9)]
    await asyncio.sleep(0)
    watermark.advance(0)
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    watermark.advance(6)
    assert await readers[0] == 6
    assert await readers[1] == 6
    await asyncio.sleep(0)
    assert not readers[2].done()
    watermark.end()
    assert await readers[2] == 6
    assert await watermark.beyond(100) == 6


async def test_a_reader_who_leaves_takes_nobody_along() -> None:
    watermark = Watermark()
    one, other = (asyncio.create_task(watermark.beyond(0)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait([one])
    watermark.advance(1)
    assert await other == 1


async def test_what_came_before_an_error_can_be_read_and_the_error_comes_behind_it() -> None:
    watermark = Watermark()
    watermark.advance(5)
    watermark.end(ValueError("cut"))
    assert await watermark.beyond(4) == 5
    with pytest.raises(ValueError, match="cut"):
        await watermark.beyond(5)


async def test_a_tide_ends_once() -> None:
    watermark = Watermark()
    watermark.end()
    watermark.end(ValueError("too late"))
    assert await watermark.beyond(0) == 0
