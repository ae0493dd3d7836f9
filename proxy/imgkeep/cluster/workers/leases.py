"""
Leases: the right to fill one key, so that one worker of a machine runs the fill of a key.

A lease is a symbolic link, named by the key, to the name of the worker that holds it. To create one is atomic, tells
which worker was first, takes ten microseconds and waits for no process, so it happens on the event loop.

The interleaving that matters, step by step:

1. A looks an image up and finds nothing.
2. B, which did the same, acquires the lease, fetches the image and stores it.
3. A wants to acquire the lease. If B had released it, A would fetch the stored image again.

So B holds the lease for a grace period after it stored the image (`grace_s`, longer than a lookup takes): A finds B as
the holder, asks B, and gets the stored image. B releases the lease of a failed fill at once, because no image is
stored.

If the holder is dead, the worker retries: the supervisor removes the leases of a dead worker.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.images.interfaces import LinkFailure

EXPIRED_MAX: Final = 16
"""
Maximum number of expired leases that one call removes: more than one call adds, so that their number does not grow, and
few enough not to delay the event loop.
"""


class WorkerLeases:
    """The leases of one worker, in a folder that all workers share."""

    def __init__(self, folder: Path, name: str, *, grace_s: float, timer: Callable[[], float]) -> None:
        self.grace_s = grace_s
        self._folder = folder
        self._name = name
        self._timer = timer
        self._held: dict[str, float | None] = {}
        """The end of each grace period; `None`: the fill is running."""
        self._expiring: deque[tuple[float, str]] = deque()

    def acquire(self, key: str) -> str | None:
        """Acquire the lease of a key. `None`: this worker holds it, now or already; else the name of the holder."""
        self._remove_expired()
        if key in self._held:
            self._held[key] = None
            return None
        path = self._folder / key
        while True:
            try:
                path.symlink_to(self._name)
            except FileExistsError:
                with suppress(FileNotFoundError):  # its holder has released it since
                    holder = str(path.readlink())
                    if holder != self._name:
                        return holder
                    self._held[key] = None  # an earlier call could not remove it
                    return None
            except FileNotFoundError:
                # The supervisor is dead and a worker has removed the folder: all workers shut down.
                return None
            except OSError:
                return None  # a full disk: two fetches are better than none
            else:
                self._held[key] = None
                return None

    def prepare(self, _key: str, _link: bytes) -> bool:
        """Prepare nothing: to acquire a lease takes ten microseconds."""
        return False

    def request(self, _key: str, _link: bytes) -> None:
        """Return no request: there are no other nodes."""

    def give_up_on(self, _holder: str) -> bool:
        """Never go on without a lease: the supervisor removes those of a dead worker."""
        return False

    async def fail(self, key: str, _failure: LinkFailure) -> None:
        """Release a lease; other workers that follow the fill get its failure."""
        self.release(key)

    def release(self, key: str, *, stored: bool = False) -> None:
        """Release a lease of this worker, if it holds one: after the grace period where the image is `stored`."""
        if key not in self._held:
            return
        self._remove_expired()
        if stored:
            self._held[key] = until = self._timer() + self.grace_s
            self._expiring.append((until, key))
        else:
            self._remove(key)

    def aclose(self) -> None:
        """Release all leases at once."""
        for key in list(self._held):
            self._remove(key)

    def _remove_expired(self) -> None:
        now = self._timer()
        for _ in range(EXPIRED_MAX):
            if not self._expiring or self._expiring[0][0] > now:
                return
            until, key = self._expiring.popleft()
            if self._held.get(key) == until:  # and was not acquired again
                self._remove(key)

    def _remove(self, key: str) -> None:
        del self._held[key]
        with suppress(OSError):
            (self._folder / key).unlink()


def find_holder(key: str, worker: WorkerInfo) -> str | None:
    """Return the name of another worker that holds the lease of a key; `None`: there is none."""
    try:
        holder = str((worker.shared_folder.leases / key).readlink())
    except OSError:
        return None
    return None if holder == worker.name else holder


def remove_leases_of(name: str, folder: Path) -> None:
    """Remove the leases of a dead worker, so that other workers can fill its keys. Blocks."""
    with suppress(OSError), os.scandir(folder) as leases:
        for lease in leases:
            with suppress(OSError):
                if os.readlink(lease.path) == name:  # noqa: PTH115 - of each of many
                    os.unlink(lease.path)  # noqa: PTH108 - likewise
