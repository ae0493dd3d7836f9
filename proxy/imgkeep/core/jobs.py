"""The nouns of jobs, which save many links in the background. Times are aware UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from imgkeep.core.records import Failure, Key, Record


@dataclass(frozen=True, slots=True)
class NewItem:
    """A link to save, or the reason why imgkeep cannot save it (`failure`)."""

    link: str
    host: str
    expires_at: datetime | None
    failure: Failure | None = None
    key: Key | None = None

    def __repr__(self) -> str:
        return f"<NewItem at {self.host}>"


@dataclass(frozen=True, slots=True)
class JobItem:
    """A waiting link of a job."""

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
        """Return the number of links that the cancelled job leaves out."""
        return 0 if self.finished_at is None else self.total - self.saved - self.failed


@dataclass(frozen=True, slots=True)
class JobResult:
    """
    The result of one link.

    Attributes:
        state: `waiting`, `saved`, `failed` or `cancelled`.
        key: Key of the saved image, else of the link. `None`: it is no link.
        record: Record of the saved image; `None`: it is not saved, or no longer stored.
        host: Host of the link; empty: it is no link.
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
    """A notification that a job is done, and the URL to send it to."""

    job: Job
    url: str
    attempts: int
    due_in_s: int

    def __repr__(self) -> str:
        return f"<Webhook of {self.job.id}>"
