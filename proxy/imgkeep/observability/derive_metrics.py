"""The counters of derive processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.observability.metrics import Tally, Times

if TYPE_CHECKING:
    from imgkeep.observability.metrics import Metrics


class DeriveMetrics:
    """Counters of derive processes, on the page of `metrics`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # One per job: "done", "not_smaller", "given_up", a reason of `Refused`, or an error code.
        self._jobs = Tally("imgkeep_derive_jobs", "Jobs of derive processes, by their result", ("format", "outcome"))
        self._times = Times("imgkeep_derive_seconds", "From job to answer, with its wait for a process", ("format",))
        # One per process that is gone.
        self._ended = Tally("imgkeep_derive_processes_ended", "Derive processes that ended, by the cause", ("cause",))
        for collector in (self._jobs, self._times, self._ended):
            metrics.registry.register(collector)

    def answered(self, format_: str, outcome: str, seconds: float) -> None:
        """Count a job; `format_`: that of the picture, or `facts`."""
        self._jobs.add(format_, outcome)
        self._times.add(seconds, format_)

    def ended(self, cause: str) -> None:
        """Count the end of a process."""
        self._ended.add(cause)

    def refused(self) -> None:
        """Count a job that found no place in the queue, or none in time."""
        self._metrics.refused("derive_queue")
