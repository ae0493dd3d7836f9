"""
How much each client may have fetched: fills a minute, fills at a time, bytes a day.

Rules:
- Only a fill counts, for whoever causes it: hits and those who join cost their visitor nothing.
- A minute and a day are buckets that run full again evenly, so nobody waits for the hour to strike. Bytes are known
  afterwards only, so a bucket may be overdrawn by the fills that are under way.
- An IPv6 client is its /64. The /48 around it may be one site that chooses among 65,536 of them, or thousands of
  telephones: it has `WIDE_NETWORK_SHARE` times as much as one client.
- Memory is bounded: whoever was not seen for longest is forgotten first, and gets full buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from imgkeep.core.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NETWORKS_MAX: Final = 65_536
"""400 bytes each, 26 MB."""
DAY_S: Final = 86_400
WIDE_NETWORK_SHARE: Final = 16
"""A site that uses its whole /48 is then no stronger than sixteen addresses, which are cheap to rent."""


class TokenBucket:
    """An even flow of permits. Holds `size` at most, and runs full again within `period_s`. 0: there is no limit."""

    __slots__ = ("_at", "_left", "_rate", "_size")

    def __init__(self, size: int, period_s: int, now: float) -> None:
        self._size = size
        self._rate = size / period_s
        self._left = float(size)
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Return for how many seconds there will be less than `amount` in it."""
        if not self._size:
            return 0
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (amount - self._left) / self._rate)

    def take(self, amount: float) -> None:
        self._left -= amount


class _Network:
    """What one network has left."""

    __slots__ = ("bytes", "concurrent_max", "fills", "under_way")

    def __init__(self, fills: TokenBucket, size: TokenBucket, concurrent_max: int) -> None:
        self.fills = fills
        self.bytes = size
        self.concurrent_max = concurrent_max
        self.under_way = 0


@dataclass(frozen=True, slots=True)
class Permit:
    """One fill that a visitor causes. Whoever gets one calls `land` when the fill is over, exactly once."""

    _networks: tuple[_Network, ...]

    def land(self, size: int) -> None:
        """The fill is over, and has brought `size` bytes."""
        for visitor in self._networks:
            visitor.under_way -= 1
            visitor.bytes.take(size)


class RateLimiter:
    """The rate_limiter of all visitors; `timer` gives monotonic seconds. 0 anywhere: no limit."""

    def __init__(
        self,
        *,
        fills_per_minute: int,
        fills_concurrent: int,
        fill_bytes_per_day: int,
        timer: Callable[[], float],
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._fills_per_minute = fills_per_minute
        self._fills_concurrent = fills_concurrent
        self._bytes_per_day = fill_bytes_per_day
        self._timer = timer
        self._refused = refused
        self._networks: LRUCache[str, _Network] = LRUCache(NETWORKS_MAX)

    def acquire(self, client: Sequence[str]) -> Permit:
        """
        Let a client cause a fill; `client` are its networks, the narrowest first.

        Raises:
            RateLimited: It has caused enough for now.
        """
        now = self._timer()
        visitors = tuple(
            self._find(network, WIDE_NETWORK_SHARE if number else 1, now) for number, network in enumerate(client)
        )
        for visitor in visitors:
            self._judge(visitor, now)
        for visitor in visitors:
            visitor.fills.take(1)
            visitor.under_way += 1
        return Permit(visitors)

    def _judge(self, visitor: _Network, now: float) -> None:
        if visitor.concurrent_max and visitor.under_way >= visitor.concurrent_max:
            raise self._refuse("fills_concurrent", 1)
        for bucket, amount, setting in (
            (visitor.fills, 1, "fills_per_minute"),
            (visitor.bytes, 0, "fill_bytes_per_day"),
        ):
            wait_s = bucket.wait_s(amount, now)
            if wait_s > 0:
                raise self._refuse(setting, math.ceil(wait_s))

    def _find(self, network: str, share: int, now: float) -> _Network:
        visitor = self._networks.get(network)
        if visitor is None:
            fills = TokenBucket(self._fills_per_minute * share, 60, now)
            size = TokenBucket(self._bytes_per_day * share, DAY_S, now)
            visitor = self._networks[network] = _Network(fills, size, self._fills_concurrent * share)
        return visitor

    def _refuse(self, setting: str, retry_after_s: int) -> RateLimited:
        self._refused(setting)
        return RateLimited(
            f"this address has had enough images fetched for now (limits.{setting}); behind a proxy of yours, see "
            "server.trusted_proxies",
            retry_after_s=max(1, retry_after_s),
        )
