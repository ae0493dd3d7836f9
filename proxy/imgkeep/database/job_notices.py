"""
Notices about jobs: short messages from one member of a cluster to all, by the NOTIFY of PostgreSQL.

A notice makes others look into the tables sooner, and says nothing that the tables do not say; so it may be lost.
PostgreSQL sends it with the transaction that it is about, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterable

CHANNEL: Final = "imgkeep_jobs"
NOTICE_INTERVAL_S: Final = 0.25
"""Minimum interval of notices about the progress of one job: commits with a notice wait for each other."""

CREATED: Final = "created"
"""There is a new job."""
SETTLED: Final = "settled"
"""A link of the job was saved or has failed, or the job has ended."""
CANCELLED: Final = "cancelled"
"""The job was cancelled."""


def announce(connection: sa.Connection, kind: str, job_ids: Iterable[str]) -> None:
    """Send a notice about each job as soon as the transaction ends."""
    for job_id in job_ids:
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, f"{kind} {job_id}")))


def read_notice(payload: str) -> tuple[str, str]:
    """Return kind and job of a notice."""
    kind, _, job_id = payload.partition(" ")
    return kind, job_id


class NoticeThrottle:
    """Bounds how often one member sends notices about the progress of a job; what it holds back is sent later."""

    def __init__(self) -> None:
        self._sent_at: dict[str, float] = {}
        self._held_back: set[str] = set()

    def admits(self, job_id: str, now: float) -> bool:
        """Return whether a notice may be sent now; otherwise it is among those that `take_late` returns."""
        if now - self._sent_at.get(job_id, -NOTICE_INTERVAL_S) < NOTICE_INTERVAL_S:
            self._held_back.add(job_id)
            return False
        self._note_sent(job_id, now)
        return True

    def take_late(self, now: float) -> list[str]:
        """Return the jobs whose notices were held back for long enough, and forget jobs without news."""
        late = [each for each in self._held_back if now - self._sent_at.get(each, 0) >= NOTICE_INTERVAL_S]
        self._sent_at = {each: at for each, at in self._sent_at.items() if now - at < NOTICE_INTERVAL_S}
        for job_id in late:
            self._note_sent(job_id, now)
        return late

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._sent_at.pop(job_id, None)
        self._held_back.discard(job_id)

    def _note_sent(self, job_id: str, now: float) -> None:
        self._sent_at[job_id] = now
        self._held_back.discard(job_id)
