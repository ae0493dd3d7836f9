"""
A circuit breaker: one failure of the primary opens it, and only a probe in the background closes it again.

A failure that may concern one object alone opens nothing: a probe at once decides, and calls go on meanwhile.

So an outage costs the clients that meet it the store's timeout once, and later clients nothing; no client's request is
the one that tests whether the primary is back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from imgkeep.core.backoff import backoff_s
from imgkeep.core.errors import RemoteFault, StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.clock import Sleep

DELAY_MIN_S: Final = 1
"""Delay before the first probe."""
DELAY_MAX_S: Final = 15
"""Maximum delay between two probes, and up to half of it: an outage lasts so much longer for clients."""
CALM_S: Final = 60
"""How long a primary has to work after a probe: one that fails sooner gets more time before the next probe."""
LOG_INTERVAL_S: Final = 60
"""Interval of logging an outage, at most."""

log = logging.getLogger(__name__)


class CircuitBreaker:
    """
    The state of the primary: closed, or open with a reason.

    Args:
        probe: Raises a `StorageError` as long as the primary does not work.
        place: What a fault says of where it happened, where it does not say so itself.
        draw: Returns a random number from 0 to 1.
        timer: Monotonic seconds.
        sleep: Waits.

    Attributes:
        reason: Why it is open, as clients may read it; `None`: it is closed.
        in_full: Why it is open, as operators read it.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        *,
        place: str,
        draw: Callable[[], float],
        timer: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.reason: str | None = None
        self.in_full = ""
        self.place = place
        self._probe = probe
        self._draw = draw
        self._timer = timer
        self._sleep = sleep
        self._failures = 0
        self._closed_at = float("-inf")
        self._logged_at = float("-inf")
        self._probed_at = float("-inf")
        self._wake = asyncio.Event()

    def report_failure(self, fault: RemoteFault) -> None:
        """Open because of `fault`, or have a probe decide whether to."""
        if fault.general:
            self.trip(fault)
        elif self._timer() - self._probed_at >= DELAY_MIN_S:
            self._wake.set()

    def trip(self, fault: StorageError) -> None:
        """Open, because of `fault`."""
        was_closed = self.reason is None
        fault.place = fault.place or self.place
        self.reason, self.in_full = str(fault), fault.in_full
        if not was_closed:
            return
        restless = self._timer() - self._closed_at < CALM_S
        self._failures = self._failures + 1 if restless else 0
        self._wake.set()
        if self._timer() - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = self._timer()
            log.error("circuit breaker opened: the primary store failed", extra={"reason": self.in_full})

    async def run(self) -> None:
        """Probe the primary, for ever: while the breaker is open, and where a failure asks for it."""
        while True:
            await self._wake.wait()
            if self.reason is not None:
                await self._sleep(self._delay_s())
            self._probed_at = self._timer()
            try:
                await self._probe()
            except StorageError as fault:
                self._fail(fault)
            except Exception:  # this loop must not end, whatever an answer holds
                log.exception("probe of the primary store failed unexpectedly")
                self._fail(StorageError("the primary store gave an unexpected answer"))
            else:
                self._close()

    def _delay_s(self) -> float:
        return backoff_s(self._failures, first_s=DELAY_MIN_S, longest_s=DELAY_MAX_S, draw=self._draw())

    def _fail(self, fault: StorageError) -> None:
        if self.reason is not None:
            self._failures += 1
        self.trip(fault)

    def _close(self) -> None:
        self._wake.clear()
        if self.reason is None:
            return
        self.reason = None
        self._closed_at = self._timer()
        log.info("circuit breaker closed: the primary store works again")
