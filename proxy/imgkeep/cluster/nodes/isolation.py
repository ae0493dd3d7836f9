"""
Isolation: whether this member alone is cut off, while others may go on removing images.

A removal needs the database. So while no member reaches it, each one may go on serving what it has. A member that the
database does not confirm asks the other nodes over the peer API:

| answers | meaning | where the store does not answer either |
|---|---|---|
| the database has confirmed a node since | images may be removed there | this process serves nothing |
| none of the nodes that answer | the database is away for all | it serves what it has |
| no node answers | this node may be cut off | this process serves nothing |

Without other nodes there is nothing to ask. The questions begin before the trust in the caches ends, so the first
lookup after that finds the result; no lookup waits for it.
"""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Final

from imgkeep.cluster.nodes.membership import DEAD_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from imgkeep.clock import Sleep
    from imgkeep.cluster.nodes.membership import Membership
    from imgkeep.images.cache_trust import CacheTrust

RESULT_TTL_S: Final = float(DEAD_AFTER_S)
"""Lifetime of the result that this process may serve what it has."""
HEARTBEATS_APART: Final = 2
"""Number of heartbeats by which the last confirmations of two members may lie apart when the database stops."""

log = logging.getLogger(__name__)


class IsolationCheck:
    """
    The check of one process.

    Args:
        membership: Tells for how long the database has been silent.
        find_confirmed: As `NodePeers.find_confirmed`.
        trust: The caches of this process.
        stale_max_s: `cluster.stale_max_s`.
        timer: Gives monotonic seconds.
        sleep: Waits between two checks.
    """

    def __init__(  # noqa: PLR0913 - all but two by name
        self,
        membership: Membership,
        find_confirmed: Callable[[float], Awaitable[Collection[bool] | None]],
        *,
        trust: CacheTrust,
        stale_max_s: float,
        timer: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._membership = membership
        self._find_confirmed = find_confirmed
        self._trust = trust
        self._stale_max_s = stale_max_s
        self._timer = timer
        self._sleep = sleep
        self._is_isolated = False

    async def run(self) -> None:
        """Check at the interval of heartbeats, for ever."""
        while True:
            try:
                await self.check()
            except Exception:  # no error of a peer may end this loop
                log.exception("other nodes not asked")
            await self._sleep(self._membership.interval_s)

    async def check(self) -> None:
        """Ask the other nodes if the database is silent, and tell `CacheTrust` the result."""
        silence_s = self._membership.silence_s
        answers: Collection[bool] | None = [False]
        if silence_s > self._stale_max_s / 2:
            answers = await self._find_confirmed(silence_s - HEARTBEATS_APART * self._membership.interval_s)
        if answers is None:
            is_isolated, until = False, inf
        else:
            is_isolated = not answers or any(answers)
            until = -inf if is_isolated else self._timer() + RESULT_TTL_S
        self._trust.unchecked_until = until
        if is_isolated != self._is_isolated:
            self._is_isolated = is_isolated
            log.log(
                logging.WARNING if is_isolated else logging.INFO,
                "node cut off; serving nothing without the store" if is_isolated else "node not cut off any more",
            )
