"""The nouns of jobs: many links that are saved in the background. Times are aware UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from imgkeep.core.records import Failure, Key, Record


@dataclass(frozen=True, slots=True)
class NewItem:
    """A link that is to be saved, or why it cannot be (`failure`)."""

    link: str
    host: str
    expires_at: datetime | None
    failure: Failure | None = None
    key: Key | None = None

    def __repr__(self) -> str:
        return f"<NewItem at {self.host}>"


@dataclass(frozen=True, slots=True)
class JobItem:
    """A link that waits in a job to be saved."""

    job: str
    number: int
    link: str
    host: str
    expires_at: datetime | None
    attempts: int

    def __repr__(self) -> str:
        return f"<JobItem {self.number} at {self.host}>"


JobState: TypeAlias = Literal["queued", "running", "done", "cancelled"]


@dataclass(frozen=True, slots=True)
class Job:
    """
    Links that are saved together. `saved + failed` of `total` are settled; a job that ended before all of them was
    cancelled.
    """

    id: str
    created_at: datetime
    finished_at: datetime | None
    total: int
    saved: int
    failed: int

    @property
    def state(self) -> JobState:
        if self.finished_at is not None:
            return "done" if self.saved + self.failed == self.total else "cancelled"
        return "running" if self.saved or self.failed else "queued"

    @property
    def cancelled(self) -> int:
        """Return how many links will not be saved because the job was cancelled."""
        return 0 if self.finished_at is None else self.total - self.saved - self.failed


@dataclass(frozen=True, slots=True)
class JobResult:
    """
    What became of one link.

    Attributes:
        state: `waiting`, `saved`, `failed` or `cancelled`.
        key: Of the image where it is saved; else that of the link. `None`: it is no link.
        record: Missing where the image is not saved, or has gone since.
        host: Of the link; empty: it is no link.
    """

    number: int
    state: str
    key: Key | None
    created: bool
    record: Record | None
    failure: Failure | None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Somebody who is to be told that a job is done."""

    job: Job
    url: str
    attempts: int
    due_in_s: int

    def __repr__(self) -> str:
        return f"<Webhook of {self.job.id}>"
