"""
Limit on the lookups of a client that find nothing: a lookup may be a request to a bucket, which the operator pays for.

Rules:
- Only lookups that find nothing count. A hit costs its client nothing.
- A client that has reached its limit is refused before a lookup.
- Each network of a client counts by itself, a /48 with `WIDE_NETWORK_FACTOR` times the number of a /64, of which its
  owner has 65,536.
- The limit holds for all processes of a server together (`limit_share`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from imgkeep.core.errors import RateLimited
from imgkeep.images.fill_rate_limit import TokenBucket
from imgkeep.images.limit_share import LimitShare

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Client

CLIENTS_MAX: Final = 65_536
"""Maximum number of clients that are counted; 200 bytes each, 13 MB. The least recently seen is forgotten first."""
WIDE_NETWORK_FACTOR: Final = 4
"""Factor of the limit for a /48, which may be a company or a carrier with many clients."""


class MissLimiter:
    """
    The limit on lookups that find nothing, by client.

    Args:
        per_minute: `limits.misses_per_minute`.
        timer: Gives monotonic seconds.
        refused: Is called with the name of the limit when it refuses.
        share: The part of this process in the limit.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        timer: Callable[[], float],
        refused: Callable[[str], None],
        share: LimitShare | None = None,
    ) -> None:
        self._per_minute = per_minute
        self._timer = timer
        self._refused = refused
        self._share = share or LimitShare()
        self._buckets: LRUCache[str, TokenBucket] = LRUCache(CLIENTS_MAX)

    def check(self, client: Client) -> None:
        """
        Check that a client may look something up.

        Raises:
            RateLimited: It has reached its limit.
        """
        now = self._timer()
        for network in client.networks:
            bucket = self._buckets.get(network)
            wait_s = 0.0 if bucket is None else bucket.wait_s(self._share.cost_of_one(bucket.size), now)
            if wait_s > 0:
                self._refused("misses_per_minute")
                raise RateLimited(
                    "this address has asked too often for what is not stored (limits.misses_per_minute); behind a "
                    "reverse proxy, see server.trusted_proxies",
                    retry_after_s=max(1, math.ceil(wait_s)),
                )

    def note(self, client: Client) -> None:
        """Count a lookup that found nothing."""
        now = self._timer()
        for position, network in enumerate(client.networks):
            bucket = self._buckets.get(network)
            if bucket is None:
                bucket = self._buckets[network] = TokenBucket(
                    self._per_minute * (WIDE_NETWORK_FACTOR if position else 1), 60, now
                )
            bucket.refill(now)
            bucket.take(self._share.cost_of_one(bucket.size))
