"""
One running call per key (asyncio, no I/O).

`SingleFlight` does not depend on the work. The interleaving that matters, step by step:

1. A looks up, finds nothing, and starts a call: the call is under its key before any other task can run.
2. B looks up, finds nothing yet, and joins A's call.
3. The call ends: `SingleFlight` drops the key *first*, then tells the followers. A request from then on starts with a
   lookup of its own, so no request joins a call that is over, and a follower that wants a call of its own finds the
   key free.
4. C looked up before A's call ended, and wants to start one after it: between a lookup and `join` there must be no
   `await`, or C has to look up again. The caller sees to that (`images/fill_coalescing.py`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator


class Call(ABC):
    """Work that runs once for all its followers."""

    @abstractmethod
    async def run(self) -> None:
        """Do the work. `SingleFlight` gives an exception to `fail`."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Tell the followers that nothing more will come. `SingleFlight` calls this after it dropped the key."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release what the call itself holds."""


C = TypeVar("C", bound=Call)


class SingleFlight(Generic[C]):
    """The running calls by key. A call owns its task: a follower that leaves does not stop it."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, C] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._calls

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._calls.values()))

    def find(self, key: Hashable) -> C | None:
        """Return the running call of this key, if there is one."""
        return self._calls.get(key)

    def join(self, key: Hashable, start: Callable[[], C]) -> tuple[C, bool]:
        """Return the call of this key, and whether it starts only now."""
        call = self._calls.get(key)
        if call is not None:
            return call, False
        call = self._calls[key] = start()
        task = asyncio.create_task(self._run(key, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call, True

    async def drain(self) -> None:
        """Wait until all running calls have ended. The caller sets the time limit."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Cancel the running calls, and wait until they have ended."""
        while tasks := list(self._tasks):
            # A task that is cancelled before its first step never takes it: its followers would wait for ever. Those
            # that start meanwhile have to take it as well, so they are cancelled in the next round.
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _run(self, key: Hashable, call: C) -> None:
        try:
            await call.run()
        except BaseException as error:
            del self._calls[key]
            call.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            del self._calls[key]
        finally:
            await call.aclose()
