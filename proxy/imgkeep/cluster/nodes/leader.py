"""
The leader of a cluster: the one member that runs what has to run once for all nodes.

It holds an advisory lock of its session. PostgreSQL releases the lock with the connection, so a dead leader has a
successor as soon as the database has noticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.database.advisory_locks import LEADER_LOCK

if TYPE_CHECKING:
    from imgkeep.database.session import DatabaseSession

CHECK_INTERVAL_S: Final = 1.0
"""Interval of attempts to become the leader: each is a statement, and what the leader does waits for longer."""


class ClusterLeader:
    """The lock that makes this member the leader of the cluster."""

    scope: Final = "cluster"
    check_interval_s: Final = CHECK_INTERVAL_S

    def __init__(self, session: DatabaseSession) -> None:
        self._session = session
        self._is_held = False
        session.when_lost(self._note_lost)

    @property
    def is_held(self) -> bool:
        """Whether this member is the leader."""
        return self._is_held

    async def acquire(self) -> bool:
        """Become the leader unless another member is; return whether this member is now."""
        if self._is_held:
            return True
        try:
            rows = await self._session.execute("SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK,))
        except StorageError:
            return False
        self._is_held = bool(rows[0][0])
        return self._is_held

    async def release(self) -> None:
        """Release the lock, so that another member becomes the leader."""
        if not self._is_held:
            return
        self._is_held = False
        try:
            await self._session.execute("SELECT pg_advisory_unlock(%s)", (LEADER_LOCK,))
        except StorageError:
            self._session.reset()  # the lock ends with the session

    def _note_lost(self) -> None:
        self._is_held = False
