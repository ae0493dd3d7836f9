"""Which job is next, and which one loses its place."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.records import OWN, Client
from imgkeep.derived.job_queue import JobQueue, WaitingJob

LOCAL = Client(loopback=True)
SITE = "2001:db8::/48"


def job(client: Client) -> WaitingJob:
    return WaitingJob(client, asyncio.Future(loop=LOOP))


LOOP = asyncio.new_event_loop()
LOOP.close()


def network(number: int) -> Client:
    return Client((f"192.0.2.{number}",))


def test_clients_and_their_networks_take_turns() -> None:
    queue = JobQueue(9)
    names = ["a", "a", "b"]
    of_site = [job(Client((f"2001:db8:0:{name}::/64", SITE))) for name in names]
    others = [job(network(1)), job(OWN), job(LOCAL)]
    for each in [*of_site, *others]:
        assert queue.add(each) is None
    first, second, third = of_site
    assert [queue.pop() for _ in range(7)] == [first, *others, third, second, None]


def test_full_queue_displaces_the_newest_job_of_the_greediest_client() -> None:
    queue = JobQueue(3)
    many = [job(network(1)) for _ in range(3)]
    for each in many:
        assert queue.add(each) is None
    more = job(network(1))
    assert not queue.has_room(network(1))
    assert queue.add(more) is more
    other = job(network(2))
    assert queue.has_room(network(2))
    assert queue.add(other) is many[2]
    refused = job(network(2))
    assert queue.add(refused) is refused, "then it would have as many as it takes one from"
    assert [queue.pop() for _ in range(4)] == [many[0], other, many[1], None]


def test_discarded_job_is_gone() -> None:
    queue = JobQueue(3)
    gone, stays, absent = job(network(1)), job(network(1)), job(network(2))
    queue.add(gone)
    queue.add(stays)
    for each in (gone, gone, absent):
        queue.discard(each)
    assert len(queue) == 1
    assert [queue.pop(), queue.pop()] == [stays, None]


@given(st.lists(st.tuples(st.sampled_from("adp"), st.integers(0, 4), st.integers(0, 2)), max_size=60))
def test_queue_keeps_its_bound_and_loses_no_job(steps: list[tuple[str, int, int]]) -> None:
    queue, waiting = JobQueue(5), Counter[WaitingJob]()
    for step, number, part in steps:
        if step == "a":
            added = job(Client((f"{number}.{part}", f"{number}")))
            has_room = queue.has_room(Client((f"{number}.{part}", f"{number}")))
            waiting[added] += 1
            displaced = queue.add(added)
            assert has_room == (displaced is not added)
            if displaced is not None:
                waiting[displaced] -= 1
        elif step == "d" and +waiting:
            gone = next(iter(+waiting))
            queue.discard(gone)
            waiting[gone] -= 1
        elif (popped := queue.pop()) is not None:
            waiting[popped] -= 1
        assert len(queue) == sum(waiting.values()) <= 5
    while (popped := queue.pop()) is not None:
        waiting[popped] -= 1
    assert not +waiting
