"""
Fill observer: the metrics, the recent failures and the health of the store, as fills and confirmations change them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, assert_never

from imgkeep.core.errors import Conflict, RemoteFault, WrittenByNewer
from imgkeep.images.failure_history import POLICY_SHARE
from imgkeep.images.fill_result import Failed, NotBegun, NotStored, Skipped, Stored, Unchanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.errors import SourceForbidden, StorageError
    from imgkeep.core.records import Record, Subject
    from imgkeep.health import Health
    from imgkeep.images.failure_history import RecentFailures
    from imgkeep.images.fill_result import FillResult
    from imgkeep.observability.metrics import Metrics

log = logging.getLogger(__name__)


class FillObserver:
    """
    The observer of fills: counts their results, notes their failures, and reports faults of the store at once.

    `stored` is called with each record that a fill or an upload has stored, before its client has the last byte: it
    costs next to nothing, and never fails.
    """

    def __init__(
        self, metrics: Metrics, health: Health, failures: RecentFailures, stored: Callable[[Record], None]
    ) -> None:
        self._stored = stored
        self._metrics = metrics
        self._health = health
        self._failures = failures

    async def fill_ended(self, result: FillResult) -> None:
        """Count how a fill, a refetch or an upload ended. A `FillListener`."""
        subject = result.subject
        match result.outcome:
            case Stored(record):
                self._metrics.filled(subject.label, result.size, pending=record.pending)
                self._stored(record)
            case NotStored(fault):
                self._metrics.not_stored(subject.label)
                self._note_fault(subject, fault)
            case Unchanged():
                self._metrics.unchanged(subject.label)
            case Failed(error):
                self._metrics.failed(subject.label, error)
                self._failures.note(subject, error)
            case Skipped() | NotBegun():
                pass
            case outcome:
                assert_never(outcome)

    def weighed(self, outcome: str) -> None:
        """Count how the image of a link compares with the stored image of its key, or how a probe ended."""
        self._metrics.weighed(outcome)

    def completed(self, outcome: str) -> None:
        """Count that an incomplete image was fetched again, that this failed, or that it was confirmed as it is."""
        self._metrics.completed(outcome)

    def suspected(self, record: Record) -> None:
        """Count and log that the bytes of a record may be a placeholder."""
        self._metrics.weighed("suspect")
        log.warning(
            "placeholder suspected: the host gives one image for many links",
            extra={"host": record.host, "digest": record.digest},
        )

    def refused(self, subject: Subject, error: SourceForbidden) -> None:
        """Note that the policy forbids a link, so that nothing was fetched."""
        self._failures.note(subject, error, share=POLICY_SHARE)

    def _note_fault(self, subject: Subject, fault: StorageError) -> None:
        """Note why a store did not take an image. A `Conflict` or a fault of one object is none of the store."""
        if isinstance(fault, Conflict) and not isinstance(fault, WrittenByNewer):
            return
        reason = fault.in_full
        if isinstance(fault, RemoteFault) and not fault.general:
            log.error("image delivered but not stored", extra={"key": subject.key, "reason": reason})
            self._failures.note(subject, fault)
            return
        if not self._health.faults.get("store"):
            log.error("image delivered but not stored", extra={"reason": reason})
        self._health.note_fault("store", reason)
        self._failures.note(subject, fault)
