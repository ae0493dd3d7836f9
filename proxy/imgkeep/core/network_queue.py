"""The queue of what one client has waiting, round robin over its narrowest networks: the /64s of a /48."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class NetworkQueue(Generic[T]):
    """What waits, in the order of arrival within each network. Each member is there once."""

    __slots__ = ("_by_network", "_number")

    def __init__(self) -> None:
        self._by_network: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def add(self, member: T, network: str) -> None:
        """Add what is not in the queue."""
        self._by_network.setdefault(network, OrderedDict())[member] = None
        self._number += 1

    def pop(self) -> T:
        """Remove and return the oldest member of the next network; the queue is not empty."""
        network, members = self._by_network.popitem(last=False)
        member, _ = members.popitem(last=False)
        if members:
            self._by_network[network] = members
        self._number -= 1
        return member

    def pop_newest(self) -> T:
        """Remove and return the newest member of the network that has most; the queue is not empty."""
        network, members = max(self._by_network.items(), key=lambda item: len(item[1]))
        member, _ = members.popitem()
        self._note_removed(network)
        return member

    def discard(self, member: T, network: str) -> bool:
        """Remove a member; tell whether it was there."""
        members = self._by_network.get(network)
        if members is None or member not in members:
            return False
        del members[member]
        self._note_removed(network)
        return True

    def _note_removed(self, network: str) -> None:
        self._number -= 1
        if not self._by_network[network]:
            del self._by_network[network]
