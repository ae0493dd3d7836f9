"""How long a link waits after an attempt that failed, and when no other attempt would help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.backoff import backoff_s
from imgkeep.core.errors import Busy, Conflict, ImgkeepError, OriginError, OriginTimeout, RateLimited, StorageError

if TYPE_CHECKING:
    from datetime import datetime

    from imgkeep.core.jobs import JobItem

DELAY_MIN_S: Final = 6
"""Delay after the first failed attempt; longer than the negative cache holds a failure that may pass
(`images/negative_cache.py`), so that each attempt is one."""
DELAY_MAX_S: Final = 600
"""Maximum delay between two attempts."""
ATTEMPTS_MAX: Final = 12
"""Maximum number of attempts for a link without an expiry: about an hour and a half."""


def retry_delay_s(item: JobItem, error: ImgkeepError, now: datetime, draw: float) -> float | None:
    """
    Return the seconds to wait before another attempt; `None`: no attempt would help.

    `draw`: a random number from 0 to 1.
    """
    if not _may_pass(error):
        return None
    delay_s = backoff_s(item.attempts, first_s=DELAY_MIN_S, longest_s=DELAY_MAX_S, draw=draw)
    delay_s = max(delay_s, getattr(error, "retry_after_s", None) or 0)
    if item.expires_at is None:
        return delay_s if item.attempts + 1 < ATTEMPTS_MAX else None
    left_s = (item.expires_at - now).total_seconds()
    if left_s <= 0:
        return None
    return min(delay_s, max(1.0, left_s - 1))  # a last one before the end


def _may_pass(error: ImgkeepError) -> bool:
    """Return whether the same link may succeed later."""
    if isinstance(error, (Busy, RateLimited, OriginTimeout)):
        return True
    if isinstance(error, StorageError):
        return not isinstance(error, Conflict)
    status = getattr(error, "origin_status", None)
    return type(error) is OriginError and (status is None or status == 429 or status >= 500)
