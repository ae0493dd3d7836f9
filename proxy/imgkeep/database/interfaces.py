"""The database as its users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from datetime import datetime

    from imgkeep.core.jobs import Job, JobItem, JobResult, JobState, NewItem, Webhook
    from imgkeep.core.records import Backlog, Digest, Failure, Key, OutboxEntry, Record, Totals, Wanted


class Outbox(Protocol):
    """What waits for the primary, durably. `ImageIndex.put` enlists what is `pending` and strikes what is not."""

    async def due(self, limit: int) -> Sequence[OutboxEntry]:
        """Return up to `limit` images whose time has come, those that wait longest first."""

    async def postpone(self, waiting: OutboxEntry, delay_s: float, error: str) -> None:
        """Count an attempt that failed, and wait `delay_s` seconds before the next."""

    async def note(self, error: str) -> None:
        """Note why nothing can be carried over at the moment, for people who ask what waits."""

    async def remove(self, key: Key) -> None:
        """There is nothing left to do for this key."""

    async def backlog(self) -> Backlog: ...


class ImageIndex(Protocol):
    """The fast, queryable view of the records. Never the truth: losing it loses nothing."""

    async def find(self, key: Key) -> Record | None: ...

    async def put(self, record: Record) -> None:
        """Bring a record in, soon: whoever keeps an image does not wait for a view of it."""


class Ledger(Protocol):
    """A database that can be looked through, for people, and filled anew."""

    async def page(self, *, limit: int, after: tuple[int, str] | None = None, wanted: Wanted = ...) -> Sequence[Record]:
        """Return up to `limit` records, newest first, from behind `after`: epoch seconds and key of the last one."""

    async def count(self) -> Totals: ...

    async def count_images(self) -> tuple[int, int]:
        """Return the number of images, and the sum of their sizes in bytes."""

    async def suspects(self, *, since: datetime, identities_min: int) -> Sequence[tuple[str, Digest, int]]:
        """
        Return host, digest and number of identities of pictures that a host gave under so many of them since then, most
        first, a hundred at most.
        """

    async def backlog(self) -> Backlog: ...

    async def rebuild(self, records: AsyncIterator[Record]) -> int:
        """Bring in all records, drop all others, and return how many."""


class Jobs(Protocol):
    """Jobs, durably: a link is in one until it is saved or has failed for good. Faults are `StorageError`."""

    async def create(self, job_id: str, new: Sequence[NewItem], webhook: str | None) -> Job: ...

    async def find(self, job_id: str) -> Job | None: ...

    async def page(
        self, *, limit: int, after: tuple[int, str] | None = None, state: JobState | None = None
    ) -> Sequence[Job]:
        """Return up to `limit` jobs, newest first, from behind the one that was taken at a second and has an id."""

    async def cancel(self, job_id: str) -> Job | None:
        """End a job: no link of it waits any more. Returns it as it stands now; `None`: there is none."""

    async def waits(self, item: JobItem) -> bool:
        """Whether a link still waits: its job was not cancelled, and no one else has settled it."""

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[JobResult]:
        """Return up to `limit` results in the order of their numbers, from behind the number `after`."""

    async def count_waiting(self) -> int:
        """Return how many links wait, in all jobs."""

    async def due(self, limit: int, *, but: Collection[tuple[str, int]], busy: Collection[str]) -> Sequence[JobItem]:
        """
        Return up to `limit` links whose time has come, those first that expire first; none of `but` (job and number),
        and none at a `busy` host.
        """

    async def saved(self, item: JobItem, key: Key, *, created: bool) -> Job:
        """The image is kept. Returns the job as it stands now."""

    async def failed(self, item: JobItem, failure: Failure) -> Job:
        """It never will be. Returns the job as it stands now."""

    async def postpone(self, item: JobItem, delay_s: float) -> None:
        """Count an attempt that failed, and wait `delay_s` seconds before the next."""

    async def webhooks(self, limit: int) -> Sequence[Webhook]:
        """Return up to `limit` jobs that are done and of which somebody is to be told, those first that are due."""

    async def told(self, webhook: Webhook) -> None:
        """Somebody was told, or never will be."""

    async def postpone_webhook(self, webhook: Webhook, delay_s: float) -> None:
        """Count an attempt that failed, and wait `delay_s` seconds before the next."""

    async def forget(self, older_than_s: int) -> int:
        """Forget jobs that were done so long ago; return how many."""
