"""
Which worker fetches which image: one fill per key on a machine, whoever is asked.

A lease is a symbolic link, named by the key, to the name of the worker that has it. To make one is atomic, tells who
was first, takes ten microseconds and asks nobody, so it is done on the event loop.

The interleaving that matters, step by step:

1. A looks for an image and finds nothing.
2. B, who did the same, has claimed it, fetches it, keeps it.
3. A wants to lease it. Were B's lease gone, A would fetch again what is there by now.

So a lease stays for a while after the image was kept (`grace_s`, longer than a look-up takes): A is told of B, asks
it, and gets what is kept. A lease on what failed goes at once, because then there is nothing to be found.

Whoever is told of a worker that is gone asks again: the supervisor removes what a dead one has claimed.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.records import WorkerInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


LET_GO_MAX: Final = 16
"""At a time, on the event loop: more than come, so that none is left, and few enough to take no time."""


class FillLeases:
    """The leases of the worker `name`, in a folder that all workers share. Implements `FillLeases`."""

    def __init__(self, folder: Path, name: str, *, grace_s: float, timer: Callable[[], float]) -> None:
        self.grace_s = grace_s
        self._folder = folder
        self._name = name
        self._timer = timer
        self._ours: dict[str, float | None] = {}
        """Until when each lingers; `None`: it is under way."""
        self._lingering: deque[tuple[float, str]] = deque()

    def take(self, key: str) -> str | None:
        self._let_go()
        if key in self._ours:
            self._ours[key] = None
            return None
        path = self._folder / key
        while True:
            try:
                path.symlink_to(self._name)
            except FileExistsError:
                with suppress(FileNotFoundError):  # let go this very moment
                    holder = str(path.readlink())
                    if holder != self._name:
                        return holder
                    self._ours[key] = None  # it could not be removed
                    return None
            except FileNotFoundError:
                # The supervisor is dead and somebody has tidied up: we are on our way out, each for itself.
                return None
            except OSError:
                return None  # a full disk: to fetch twice is better than not at all
            else:
                self._ours[key] = None
                return None

    def release(self, key: str, *, kept: bool = False) -> None:
        if key not in self._ours:
            return
        self._let_go()
        if kept:
            self._ours[key] = until = self._timer() + self.grace_s
            self._lingering.append((until, key))
        else:
            self._remove(key)

    def aclose(self) -> None:
        """Let go of all leases."""
        for key in list(self._ours):
            self._remove(key)

    def _let_go(self) -> None:
        now = self._timer()
        for _ in range(LET_GO_MAX):
            if not self._lingering or self._lingering[0][0] > now:
                return
            until, key = self._lingering.popleft()
            if self._ours.get(key) == until:  # and was not claimed again
                self._remove(key)

    def _remove(self, key: str) -> None:
        del self._ours[key]
        with suppress(OSError):
            (self._folder / key).unlink()


class LeaderLock:
    """
    Whose turn it is to do what one worker does for all: the outbox, jobs, filling the database, the API.

    Who has the lock on a file has the turn, and the kernel takes it from the dead. The link `works` names who had it
    last.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._descriptor: int | None = None

    @property
    def ours(self) -> bool:
        return self._descriptor is not None

    def take(self) -> bool:
        """Take the turn, if nobody has it."""
        descriptor = os.open(self._folder / "works.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new = self._folder / f"works.{self._name}"
            new.symlink_to(self._name)
            new.replace(self._folder / WorkerInfo.LEADER)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                return False
            raise
        self._descriptor = descriptor
        return True

    def leave(self) -> None:
        """Let somebody else have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
