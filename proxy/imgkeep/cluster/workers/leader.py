"""
The leader of a node: the one worker that uploads the outbox, whose bytes are on the disk of its machine. With SQLite it
also runs all other background tasks that run once, and answers the API.

The leader holds the lock on a file, which the kernel takes from a dead process. A symbolic link names the last leader.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from imgkeep.cluster.workers.worker_info import SharedFolder


CHECK_INTERVAL_S: Final = 0.25
"""Interval of attempts to become the leader; at most this long after a leader's death another worker goes on."""


class NodeLeader:
    """The lock that makes the worker `name` the leader of its node."""

    scope: Final = "node"
    check_interval_s: Final = CHECK_INTERVAL_S

    def __init__(self, folder: SharedFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this worker is the leader."""
        return self._descriptor is not None

    async def acquire(self) -> bool:
        """Become the leader unless another worker is; return whether this worker is now."""
        return self.is_held or await asyncio.to_thread(self._acquire)

    async def release(self) -> None:
        """Release the lock, so that another worker becomes the leader."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self) -> bool:
        descriptor = os.open(self._folder.leader_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new = self._folder.leader.with_name(f"leader.{self._name}")
            with suppress(FileNotFoundError):
                new.unlink()  # left by an attempt that failed between the next two lines
            new.symlink_to(self._name)
            new.replace(self._folder.leader)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                return False
            raise
        self._descriptor = descriptor
        return True
