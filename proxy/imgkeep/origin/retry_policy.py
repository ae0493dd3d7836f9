"""Whether another attempt at an origin can help, and how long a fetch waits before it."""

from __future__ import annotations

import math
from typing import Final

from imgkeep.core.backoff import backoff_s
from imgkeep.core.errors import OriginError

RETRY_DELAY_S: Final = 0.25
"""Delay of the first retry. Each next one doubles it, and up to half as much again comes at random."""
RETRY_AFTER_MAX_S: Final = 5
"""Maximum `Retry-After` that a fetch waits for, because a client waits meanwhile. A longer one goes to the client."""


def retry_delay_s(error: OriginError, attempt: int, draw: float) -> float | None:
    """Return the delay before another attempt; `None`: no attempt would help. `draw`: a random number from 0 to 1."""
    if type(error) is not OriginError:
        return None
    if error.origin_status is not None and error.origin_status != 429 and error.origin_status < 500:
        return None
    if error.retry_after_s is not None:
        return error.retry_after_s if error.retry_after_s <= RETRY_AFTER_MAX_S else None
    return backoff_s(attempt, first_s=RETRY_DELAY_S, longest_s=math.inf, draw=draw)
