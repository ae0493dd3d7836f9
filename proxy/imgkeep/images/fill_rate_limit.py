"""
Rate limiter: the limits on the fills of each client, per minute, at a time, and in bytes per day.

Rules:
- Only a fill counts, for the client that causes it: hits and followers cost their client nothing.
- The limits per minute and per day are token buckets, which refill continuously: no limit resets at a fixed time. The
  size of a fill is known at its end only, so running fills may overdraw a bucket.
- An IPv6 client is its /64. The /48 around it may be one site that chooses among 65,536 of them, or thousands of
  telephones: its limits are `WIDE_NETWORK_FACTOR` times those of one client.
- The limits hold for all processes of a server together (`limit_share`).
- Memory is bounded: the network that was not seen for longest is forgotten first, and gets full buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from imgkeep.core.errors import RateLimited
from imgkeep.images.fill_result import NotBegun
from imgkeep.images.limit_share import LimitShare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.images.fill_result import FillResult

NETWORKS_MAX: Final = 65_536
"""Maximum number of networks in memory, 400 bytes each: 26 MB."""
DAY_S: Final = 86_400
WIDE_NETWORK_FACTOR: Final = 16
"""
Factor of the limits for a /48: a site that uses all of it is then no stronger than sixteen addresses, which are cheap
to rent.
"""


class TokenBucket:
    """A token bucket: holds `size` tokens at most, and refills continuously within `period_s`. 0: there is no limit."""

    __slots__ = ("_at", "_left", "_rate", "size")

    def __init__(self, size: int, period_s: int, now: float) -> None:
        self.size = size
        self._rate = size / period_s
        self._left = float(size)
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Return for how many seconds it will hold less than `amount`."""
        if not self.size:
            return 0
        self.refill(now)
        return max(0.0, (amount - self._left) / self._rate)

    def refill(self, now: float) -> None:
        self._left = min(self.size, self._left + (now - self._at) * self._rate)
        self._at = now

    def take(self, amount: float) -> None:
        self._left -= amount


class _Network:
    """The buckets of one network, and the number of its running fills."""

    __slots__ = ("bytes", "concurrent_max", "fills", "running")

    def __init__(self, fills: TokenBucket, size: TokenBucket, concurrent_max: int) -> None:
        self.fills = fills
        self.bytes = size
        self.concurrent_max = concurrent_max
        self.running = 0


@dataclass(frozen=True, slots=True)
class Permit:
    """The permit of one fill. `fill_ended` is called exactly once."""

    _networks: tuple[_Network, ...]
    _share: LimitShare

    async def fill_ended(self, result: FillResult) -> None:
        """Take the bytes of the fill from its buckets; a fill that did not begin costs nothing. A `FillListener`."""
        for network in self._networks:
            network.running -= 1
            network.bytes.take(result.size * self._share.members)
            if isinstance(result.outcome, NotBegun):
                network.fills.take(-self._share.cost_of_one(network.fills.size))


@dataclass(frozen=True, slots=True)
class FillLimits:
    """The limits of one client as configured, for all processes together; 0 means no limit."""

    fills_per_minute: int
    fills_concurrent: int
    fill_bytes_per_day: int


class RateLimiter:
    """
    The limits of all clients.

    Args:
        limits: The limits of each.
        timer: Gives monotonic seconds.
        refused: Callback with the name of the limit that a client has reached.
        share: The part of this process in the limits.
    """

    def __init__(
        self,
        limits: FillLimits,
        *,
        timer: Callable[[], float],
        refused: Callable[[str], None] = lambda _: None,
        share: LimitShare | None = None,
    ) -> None:
        self._limits = limits
        self._timer = timer
        self._refused = refused
        self._share = share or LimitShare()
        self._networks: LRUCache[str, _Network] = LRUCache(NETWORKS_MAX)

    def acquire(self, networks: Sequence[str]) -> Permit:
        """
        Give a client a permit for a fill; `networks` are those of the client, the narrowest first.

        Raises:
            RateLimited: The client has reached one of its limits.
        """
        now = self._timer()
        found = tuple(
            self._find(network, WIDE_NETWORK_FACTOR if number else 1, now) for number, network in enumerate(networks)
        )
        for network in found:
            self._check(network, now)
        for network in found:
            network.fills.take(self._share.cost_of_one(network.fills.size))
            network.running += 1
        return Permit(found, self._share)

    def _check(self, network: _Network, now: float) -> None:
        if network.concurrent_max and network.running >= self._share.part_of(network.concurrent_max):
            raise self._refuse("fills_concurrent", 1)
        for bucket, amount, setting in (
            (network.fills, self._share.cost_of_one(network.fills.size), "fills_per_minute"),
            (network.bytes, 0, "fill_bytes_per_day"),
        ):
            wait_s = bucket.wait_s(amount, now)
            if wait_s > 0:
                raise self._refuse(setting, math.ceil(wait_s))

    def _find(self, name: str, factor: int, now: float) -> _Network:
        network = self._networks.get(name)
        if network is None:
            limits = self._limits
            fills = TokenBucket(limits.fills_per_minute * factor, 60, now)
            size = TokenBucket(limits.fill_bytes_per_day * factor, DAY_S, now)
            network = self._networks[name] = _Network(fills, size, limits.fills_concurrent * factor)
        return network

    def _refuse(self, setting: str, retry_after_s: int) -> RateLimited:
        self._refused(setting)
        return RateLimited(
            f"this address has reached limits.{setting}: retry later; if clients reach imgkeep through a proxy, set "
            "server.trusted_proxies",
            retry_after_s=max(1, retry_after_s),
        )
