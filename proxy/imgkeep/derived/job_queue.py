"""
The queue of jobs that wait for a derive process.

Rules:
- It serves the clients in turn, and the networks inside a client in turn: a job waits for those of its own client, and
  for one of each other client.
- One client may fill all of it: a page asks for many pictures at once. A job that finds it full takes the place of the
  newest job of the client that has most in it, if that client has at least two more than its own.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from imgkeep.core.network_queue import NetworkQueue

if TYPE_CHECKING:
    import asyncio

    from imgkeep.core.records import Client

OWN_CLIENT: Final = "own"
"""The API, jobs and commands; no network has this name."""
LOCAL_CLIENT: Final = "local"
"""This machine's own programs, and clients of a local proxy that does not name them."""


class WaitingJob:
    """
    A job that waits for a process.

    Attributes:
        name: The name of its client.
        network: The narrowest network of its client.
        granted: Done when it may begin; has an exception where it gave its place to another one.
    """

    __slots__ = ("granted", "name", "network")

    def __init__(self, client: Client, granted: asyncio.Future[None]) -> None:
        self.name = _name_of(client)
        self.network = client.networks[0] if client.networks and not client.own else ""
        self.granted = granted

    @property
    def is_granted(self) -> bool:
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None


class JobQueue:
    """The jobs that wait. `size_max`: maximum number of them."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._clients: OrderedDict[str, NetworkQueue[WaitingJob]] = OrderedDict()
        """By client, in the order in which they are served."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def has_room(self, client: Client) -> bool:
        """Return whether a job of a client would find a place: a free one, or that of another job."""
        return self._size < self._size_max or self._find_displaceable(_name_of(client)) is not None

    def add(self, job: WaitingJob) -> WaitingJob | None:
        """Add a job, and return the one that has no place then: another one, or this job itself."""
        displaced = None
        if self._size >= self._size_max:
            longest = self._find_displaceable(job.name)
            if longest is None:
                return job
            displaced = longest.pop_newest()
            self._size -= 1
        self._clients.setdefault(job.name, NetworkQueue()).add(job, job.network)
        self._size += 1
        return displaced

    def _find_displaceable(self, name: str) -> NetworkQueue[WaitingJob] | None:
        """Return the client whose newest job makes room for one of the client of this name; `None`: there is none."""
        longest = max(self._clients.values(), key=len)
        own = self._clients.get(name)
        return longest if len(longest) >= (0 if own is None else len(own)) + 2 else None

    def pop(self) -> WaitingJob | None:
        """Remove and return the next job; `None`: no job waits."""
        if not self._clients:
            return None
        name, jobs = self._clients.popitem(last=False)
        job = jobs.pop()
        if jobs:
            self._clients[name] = jobs
        self._size -= 1
        return job

    def discard(self, job: WaitingJob) -> None:
        """Remove a job, if it is there."""
        jobs = self._clients.get(job.name)
        if jobs is not None and jobs.discard(job, job.network):
            self._size -= 1
            if not jobs:
                del self._clients[job.name]


def _name_of(client: Client) -> str:
    return OWN_CLIENT if client.own else LOCAL_CLIENT if not client.networks else client.networks[-1]
