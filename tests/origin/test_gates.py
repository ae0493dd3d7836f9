"""Concurrency limits with bounded queues."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from proxy.core.errors import Busy
from proxy.origin.gates import QUEUE_PER_PLACE, Gates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def turns(times: int = 5) -> None:
    """Let everybody who can move do so."""
    for _ in range(times):
        await asyncio.sleep(0)


class Crowd:
    """Visitors of gates: each enters a host's gate, says so, and stays until it is told to leave."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.inside: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.leave = asyncio.Event()

    async def add(self, *names: str) -> None:
        """Add visitors named `host` or `host/whatever`."""
        self.tasks += [asyncio.create_task(self._visit(name)) for name in names]
        await turns()

    async def _visit(self, name: str) -> None:
        async with self.gates.enter(name.partition("/")[0]):
            self.inside.append(name)
            try:
                await self.leave.wait()
            finally:
                self.inside.remove(name)

    async def all_leave(self) -> None:
        self.leave.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd(Gates(3, 2))
    yield crowd
    await crowd.all_leave()
    # Whatever happened, nobody is left and no host is remembered.
    assert (crowd.inside, crowd.gates.waiting, crowd.gates._hosts) == ([], 0, {})
    async with AsyncExitStack() as stack:
        for host in ("a", "a", "b"):
            await asyncio.wait_for(stack.enter_async_context(crowd.gates.enter(host)), 1)


async def test_a_host_takes_its_places_and_no_more(crowd: Crowd) -> None:
    await crowd.add("a/1", "a/2", "a/3")
    assert (crowd.inside, crowd.gates.waiting) == (["a/1", "a/2"], 1)


async def test_who_waits_for_a_host_takes_no_place_of_the_others(crowd: Crowd) -> None:
    await crowd.add("a/1", "a/2", "a/3", "a/4", "b/1")
    assert crowd.inside == ["a/1", "a/2", "b/1"]


async def test_all_hosts_together_take_no_more_than_all_places(crowd: Crowd) -> None:
    await crowd.add("a", "b", "c", "d")
    assert (crowd.inside, crowd.gates.waiting) == (["a", "b", "c"], 1)


async def test_those_who_wait_enter_in_turn(crowd: Crowd) -> None:
    await crowd.add("a/1", "a/2", "a/3", "a/4")
    crowd.tasks[1].cancel()
    await turns()
    assert crowd.inside == ["a/1", "a/3"]
    crowd.tasks[0].cancel()
    await turns()
    assert crowd.inside == ["a/3", "a/4"]


async def test_a_full_queue_of_a_host_refuses_at_once_and_others_still_enter(crowd: Crowd) -> None:
    await crowd.add(*(f"a/{number}" for number in range(2 + 2 * QUEUE_PER_PLACE)))
    assert crowd.gates.waiting == 2 * QUEUE_PER_PLACE
    with pytest.raises(Busy) as busy:
        await asyncio.wait_for(crowd.gates.enter("a").__aenter__(), 1)
    assert busy.value.retry_after_s > 0
    await crowd.add("b")
    assert "b" in crowd.inside


async def test_a_full_queue_of_all_refuses_and_leaves_nothing(crowd: Crowd) -> None:
    # One a host, so that no host's own queue is meant.
    await crowd.add(*(f"h{number}" for number in range(3 + 3 * QUEUE_PER_PLACE)))
    with pytest.raises(Busy):
        await asyncio.wait_for(crowd.gates.enter("one-more").__aenter__(), 1)
    assert "one-more" not in crowd.gates._hosts
    assert crowd.gates.waiting == 3 * QUEUE_PER_PLACE


async def test_a_visitor_that_fails_gives_its_place_back(crowd: Crowd) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            async with crowd.gates.enter("a"):
                raise ZeroDivisionError
    await crowd.add("a/1", "a/2")
    assert len(crowd.inside) == 2


@pytest.mark.parametrize("waits_for", ["its host", "all"])
async def test_who_gives_up_waiting_leaves_nothing(crowd: Crowd, waits_for: str) -> None:
    await crowd.add(*(("a/1", "a/2", "a/3") if waits_for == "its host" else ("a", "b", "c", "d")))
    assert crowd.gates.waiting == 1
    crowd.tasks[-1].cancel()
    await turns()
    assert crowd.gates.waiting == 0
    assert len(crowd.gates._hosts) == (1 if waits_for == "its host" else 3)


async def test_who_is_called_in_and_gives_up_in_the_same_moment_passes_the_place_on(crowd: Crowd) -> None:
    await crowd.add("a/1", "a/2", "a/3", "a/4")
    # The first leaves, which wakes the third; before it has moved, it is cancelled.
    crowd.tasks[0].cancel()
    crowd.tasks[2].cancel()
    await turns(10)
    assert crowd.inside == ["a/2", "a/4"]
