"""
How often a client may ask for what is not stored: a look may be a request to a bucket, which the operator pays for.

Rules:
- Only what was looked for in vain counts. What is found costs its client nothing.
- A client that has used its part up is refused before anything is looked for.
- Every network of a client counts by itself, a /48 with `WIDE_PART` times the number of a /64: its owner has 65,536.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from imgkeep.core.errors import RateLimited
from imgkeep.images.rate_limit import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Client

CLIENTS_MAX: Final = 65_536
"""200 bytes each, 13 MB. The client that was not seen for longest is forgotten first."""
WIDE_PART: Final = 4
"""A /48 may be a company or a carrier with many who look."""


class MissLimiter:
    """
    Counts look-ups in vain by client.

    Args:
        per_minute: `limits.misses_per_minute`; 0: there is no limit.
        timer: Gives monotonic seconds.
        refused: Is told of the limit when it refuses.
    """

    def __init__(self, per_minute: int, *, timer: Callable[[], float], refused: Callable[[str], None]) -> None:
        self._per_minute = per_minute
        self._timer = timer
        self._refused = refused
        self._buckets: LRUCache[str, TokenBucket] = LRUCache(CLIENTS_MAX)

    def check(self, client: Client) -> None:
        """
        Let a client look for something.

        Raises:
            RateLimited: It has looked in vain too often.
        """
        now = self._timer()
        for network in client.networks:
            bucket = self._buckets.get(network)
            wait_s = 0.0 if bucket is None else bucket.wait_s(1, now)
            if wait_s > 0:
                self._refused("misses_per_minute")
                raise RateLimited(
                    "this address has asked too often for what is not stored (limits.misses_per_minute); behind a "
                    "proxy of yours, see server.trusted_proxies",
                    retry_after_s=max(1, math.ceil(wait_s)),
                )

    def note(self, client: Client) -> None:
        """A client has looked in vain."""
        now = self._timer()
        for place, network in enumerate(client.networks):
            bucket = self._buckets.get(network)
            if bucket is None:
                bucket = self._buckets[network] = TokenBucket(self._per_minute * (WIDE_PART if place else 1), 60, now)
            bucket.wait_s(1, now)
            bucket.take(1)
