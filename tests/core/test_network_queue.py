"""The order in the queue of a client."""

from __future__ import annotations

from dataclasses import dataclass

from imgkeep.core.network_queue import NetworkQueue


@dataclass(frozen=True)
class Member:
    network: str
    number: int


FIRST, SECOND, THIRD, OTHER = Member("a", 1), Member("a", 2), Member("a", 3), Member("b", 1)


def queue_of(*members: Member) -> NetworkQueue[Member]:
    queue: NetworkQueue[Member] = NetworkQueue()
    for member in members:
        queue.add(member, member.network)
    return queue


def test_networks_take_turns() -> None:
    queue = queue_of(FIRST, SECOND, OTHER)
    assert [queue.pop() for _ in range(len(queue))] == [FIRST, OTHER, SECOND]
    assert len(queue) == 0


def test_newest_of_the_longest_network_goes_first() -> None:
    queue = queue_of(FIRST, OTHER, SECOND, THIRD)
    assert [queue.pop_newest() for _ in range(2)] == [THIRD, SECOND]
    assert {queue.pop_newest(), queue.pop_newest()} == {FIRST, OTHER}
    assert len(queue) == 0


def test_discarded_member_is_gone() -> None:
    queue = queue_of(FIRST, SECOND)
    assert [queue.discard(each, each.network) for each in (FIRST, FIRST, OTHER)] == [True, False, False]
    assert [queue.pop() for _ in range(len(queue))] == [SECOND]
