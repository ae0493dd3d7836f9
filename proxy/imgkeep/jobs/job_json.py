"""A job in the JSON form of the API and of webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgkeep.core.jobs import Job


def describe_job(job: Job) -> dict[str, Any]:
    """Return the JSON form of a job, without its results."""
    return {
        "id": job.id,
        "state": job.state,
        "total": job.total,
        "saved": job.saved,
        "failed": job.failed,
        "cancelled": job.cancelled,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
    }
