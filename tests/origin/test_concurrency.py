"""Concurrency limits with bounded queues."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Busy
from imgkeep.core.records import OWN, Client
from imgkeep.origin.concurrency import QUEUE_PER_SLOT, FetchLimiter
from imgkeep.origin.demand import Demand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.origin.concurrency import FetchSlot


async def loop_iterations(times: int = 5) -> None:
    """Let every task that can go on do so."""
    for _ in range(times):
        await asyncio.sleep(0)


class Fetches:
    """Fetches that enter, say so, and stay until they are told to leave."""

    def __init__(self, limiter: FetchLimiter) -> None:
        self.limiter = limiter
        self.inside: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.leave = asyncio.Event()

    async def add(self, *names: str) -> None:
        """Add fetches named `host` or `host/<any>`."""
        self.tasks += [asyncio.create_task(self._fetch(name)) for name in names]
        await loop_iterations()

    async def _fetch(self, name: str) -> None:
        async with self.limiter.enter(name.partition("/")[0]):
            self.inside.append(name)
            try:
                await self.leave.wait()
            finally:
                self.inside.remove(name)

    async def all_leave(self) -> None:
        self.leave.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def fetches() -> AsyncIterator[Fetches]:
    fetches = Fetches(FetchLimiter(3, 2))
    yield fetches
    await fetches.all_leave()
    # In any case no fetch is left, and no host is remembered.
    assert (fetches.inside, fetches.limiter.waiting, fetches.limiter.known.hosts) == ([], 0, {})
    async with AsyncExitStack() as stack:
        for host in ("a", "a", "b"):
            await asyncio.wait_for(stack.enter_async_context(fetches.limiter.enter(host)), 20)


async def test_host_takes_its_slots_and_no_more(fetches: Fetches) -> None:
    await fetches.add("a/1", "a/2", "a/3")
    assert (fetches.inside, fetches.limiter.waiting) == (["a/1", "a/2"], 1)


async def test_wait_for_a_host_takes_no_slot_of_others(fetches: Fetches) -> None:
    await fetches.add("a/1", "a/2", "a/3", "a/4", "b/1")
    assert fetches.inside == ["a/1", "a/2", "b/1"]


async def test_all_hosts_take_no_more_than_all_slots(fetches: Fetches) -> None:
    await fetches.add("a", "b", "c", "d")
    assert (fetches.inside, fetches.limiter.waiting) == (["a", "b", "c"], 1)


async def test_waiting_fetches_enter_in_order(fetches: Fetches) -> None:
    await fetches.add("a/1", "a/2", "a/3", "a/4")
    fetches.tasks[1].cancel()
    await loop_iterations()
    assert fetches.inside == ["a/1", "a/3"]
    fetches.tasks[0].cancel()
    await loop_iterations()
    assert fetches.inside == ["a/3", "a/4"]


async def test_full_host_queue_refuses_and_other_hosts_go_on(fetches: Fetches) -> None:
    await fetches.add(*(f"a/{number}" for number in range(2 + 2 * QUEUE_PER_SLOT)))
    assert fetches.limiter.waiting == 2 * QUEUE_PER_SLOT
    with pytest.raises(Busy) as busy:
        await asyncio.wait_for(fetches.limiter.enter("a").__aenter__(), 20)
    assert busy.value.retry_after_s > 0
    await fetches.add("b")
    assert "b" in fetches.inside


async def test_full_queue_refuses_and_leaves_no_trace(fetches: Fetches) -> None:
    # One a host, so that no host's own queue is meant.
    await fetches.add(*(f"h{number}" for number in range(3 + 3 * QUEUE_PER_SLOT)))
    with pytest.raises(Busy):
        await asyncio.wait_for(fetches.limiter.enter("one-more").__aenter__(), 20)
    assert "one-more" not in fetches.limiter.known.hosts
    assert fetches.limiter.waiting == 3 * QUEUE_PER_SLOT


async def test_failed_fetch_releases_its_slot(fetches: Fetches) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            async with fetches.limiter.enter("a"):
                raise ZeroDivisionError
    await fetches.add("a/1", "a/2")
    assert len(fetches.inside) == 2


@pytest.mark.parametrize("waits_for", ["its host", "all"])
async def test_cancelled_wait_leaves_no_trace(fetches: Fetches, waits_for: str) -> None:
    await fetches.add(*(("a/1", "a/2", "a/3") if waits_for == "its host" else ("a", "b", "c", "d")))
    assert fetches.limiter.waiting == 1
    fetches.tasks[-1].cancel()
    await loop_iterations()
    assert fetches.limiter.waiting == 0
    assert len(fetches.limiter.known.hosts) == (1 if waits_for == "its host" else 3)


async def test_slot_granted_to_a_cancelled_fetch_goes_on(fetches: Fetches) -> None:
    await fetches.add("a/1", "a/2", "a/3", "a/4")
    # The first leaves, which wakes the third; before it has moved, it is cancelled.
    fetches.tasks[0].cancel()
    fetches.tasks[2].cancel()
    await loop_iterations(10)
    assert fetches.inside == ["a/2", "a/4"]


VISITORS = [Client((f"192.0.2.{n}",)) for n in range(6)]
VISITORS += [Client((f"2001:db8:{site}:{n}::/64", f"2001:db8:{site}::/48")) for site in (1, 2) for n in (1, 2)]
CLIENTS = [*VISITORS, Client(("127.0.0.1",), loopback=True), OWN]


@dataclass(eq=False)
class Fetch:
    """One fetch at the limiter, which does as it is told."""

    limiter: FetchLimiter
    host: str
    demand: Demand
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    move_to: str | None = None
    slot: FetchSlot | None = None
    task: asyncio.Task[None] | None = None
    stopped: bool = False

    async def run(self) -> None:
        self.slot = self.limiter.enter(self.host, self.demand, self.stop)
        with suppress(Busy):
            await self._stay(self.slot)

    async def _stay(self, slot: FetchSlot) -> None:
        async with slot:
            while True:
                await self.goes_on.wait()
                self.goes_on.clear()
                if self.move_to is None:
                    return
                self.host, self.move_to = self.move_to, None
                await slot.move(self.host)

    def stop(self) -> None:
        self.stopped = True
        assert self.task is not None
        self.task.cancel()


class Model:
    """Checks the limiter against a look at every fetch there is."""

    def __init__(self, slots: int, per_host: int) -> None:
        self.limiter = FetchLimiter(slots, per_host)
        self.fetches: list[Fetch] = []

    def add(self, host: str, client: Client, *, yields: bool = False) -> Fetch:
        fetch = Fetch(self.limiter, host, Demand(client, yields=yields))
        fetch.task = asyncio.create_task(fetch.run())
        self.fetches.append(fetch)
        return fetch

    async def settle(self) -> None:
        await loop_iterations(12)
        for fetch in [each for each in self.fetches if each.task is not None and each.task.done()]:
            self.fetches.remove(fetch)

    def check(self) -> None:
        limiter = self.limiter
        slots = [each.slot for each in self.fetches if each.slot is not None]
        inside = [each for each in slots if each.inside]
        started = [each for each in slots if each.started]
        at_host = Counter(
            (each.at_host.host.name, each.owner.name) for each in started if each.at_host and not _moves(each)
        )
        hosts = Counter(host for host, _ in at_host.elements())
        owners = Counter(each.owner.name for each in started)
        limited = {each.owner.name for each in slots if each.owner.share is not None}
        own = sum(each.own for each in inside)
        assert limiter.used == len(inside) <= limiter._slots
        assert max(own, len(inside) - own) <= limiter._slots_of_class
        assert all(number <= limiter._slots_per_host for number in hosts.values())
        assert all(owners[name] <= limiter._share for name in limited)
        assert all(number <= limiter._share_of_host for (_, name), number in at_host.items() if name in limited)
        assert limiter.waiting == sum(each.queue is not None for each in slots)
        for slot in slots:
            assert not (slot.queue is not None and self._could_go_on(slot, at_host, hosts, owners)), slot
            if slot.demand.yields and slot.inside and slot.queue is None:
                waiting = [each for each in slots if each.queue is not None and self._waits_for(each, slot)]
                assert not waiting, "a fetch without a reader keeps another one waiting"

    def _could_go_on(
        self, slot: FetchSlot, at_host: Counter[tuple[str, str]], hosts: Counter[str], owners: Counter[str]
    ) -> bool:
        limiter, owner = self.limiter, slot.owner
        if slot.queue is owner.waiting_for_all:
            return limiter._has_room(slot.own)
        assert slot.at_host is not None
        host = slot.at_host.host.name
        limited = owner.share is not None
        return (
            hosts[host] < limiter._slots_per_host
            and (not limited or at_host[host, owner.name] < limiter._share_of_host)
            and (not limited or slot.started or owners[owner.name] < limiter._share)
        )

    def _waits_for(self, waiting: FetchSlot, slot: FetchSlot) -> bool:
        """Whether all that `waiting` lacks is a slot that `slot` holds."""
        if waiting.queue is waiting.owner.waiting_for_all:
            return not waiting.own or self.limiter.used >= self.limiter._slots
        assert waiting.at_host is not None
        assert slot.at_host is not None
        if waiting.owner.share is not None and waiting.at_host.held >= self.limiter._share_of_host:
            return waiting.at_host is slot.at_host
        if waiting.owner.full and not waiting.started:
            return waiting.owner is slot.owner and waiting.at_host.host.used < self.limiter._slots_per_host
        return waiting.at_host.host is slot.at_host.host and waiting.at_host.host.used >= self.limiter._slots_per_host


def _moves(slot: FetchSlot) -> bool:
    """Whether a redirected fetch waits for its next host."""
    return slot.queue is not None and slot.queue is not slot.owner.waiting_for_all


@pytest.mark.parametrize("seed", range(30))
async def test_limits_hold_in_any_order_of_events(seed: int) -> None:
    draw = random.Random(seed)
    model = Model(slots=draw.choice([3, 8, 16]), per_host=draw.choice([1, 2, 4, 8]))
    hosts = [f"host{n}" for n in range(draw.choice([1, 3, 8]))]
    for _ in range(300):
        what = draw.random()
        if what < 0.5 or not model.fetches:
            client = draw.choice(CLIENTS)
            model.add(draw.choice(hosts), client, yields=not client.own and draw.random() < 0.1)
        else:
            fetch = draw.choice(model.fetches)
            assert fetch.task is not None
            if what < 0.62:
                fetch.task.cancel()
            elif what < 0.72:
                fetch.move_to = draw.choice(hosts)
                fetch.goes_on.set()
            elif what < 0.85 and not fetch.demand.client.own:
                fetch.demand.set(yields=not fetch.demand.yields)
            else:
                fetch.goes_on.set()
        if draw.random() < 0.7:
            await model.settle()
            model.check()
    for fetch in model.fetches:
        assert fetch.task is not None
        fetch.task.cancel()
    tasks = [fetch.task for fetch in model.fetches if fetch.task is not None]
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    limiter = model.limiter
    assert (limiter.waiting, limiter.used) == (0, 0)
    assert (limiter.known.hosts, limiter.known.clients, limiter._yielding) == ({}, {}, {})
