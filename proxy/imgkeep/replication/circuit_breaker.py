"""
A circuit breaker: one failure of the primary opens it, and only a probe in the background closes it again.

A failure that may concern one object alone does not open the circuit breaker: it starts a probe at once, and calls go
on until the probe fails.

In an outage only the clients whose requests are running wait for the store's timeout. Later requests do not wait, and
no client's request serves as the probe.
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
"""Maximum delay between two probes, before up to half of it is added at random: clients notice the end of an outage so
much later."""
STABLE_S: Final = 60
"""
Minimum time between two outages for the second to start with the shortest delay; an earlier one doubles the delay.
"""
LOG_INTERVAL_S: Final = 60
"""Minimum interval of log messages about an outage."""

log = logging.getLogger(__name__)


class CircuitBreaker:
    """
    The state of the primary: closed, or open with a reason.

    Args:
        probe: Raises a `StorageError` as long as the primary does not work.
        place: The place that a fault names, unless the fault has its own.
        draw: Returns a random number from 0 to 1.
        timer: Returns monotonic seconds.
        sleep: Waits for a number of seconds.

    Attributes:
        reason: The reason for the open state, for clients; `None`: it is closed.
        in_full: The reason for the open state, for operators.
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
        self._checking = asyncio.Lock()

    def report_failure(self, fault: RemoteFault) -> None:
        """Open because of `fault`, or start a probe if the fault may concern one object alone."""
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
        reopened_soon = self._timer() - self._closed_at < STABLE_S
        self._failures = self._failures + 1 if reopened_soon else 0
        self._wake.set()
        if self._timer() - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = self._timer()
            log.error("circuit breaker opened: the primary store failed", extra={"reason": self.in_full})

    async def run(self) -> None:
        """Probe the primary, for ever: while the circuit breaker is open, and after a failure that asks for a probe."""
        while True:
            await self._wake.wait()
            if self.reason is not None:
                await self._sleep(self._delay_s())
            if await self._try_probe():
                self._close()

    async def check(self) -> bool:
        """
        Return whether the primary works, by a probe if it is closed, and open if the probe fails. So a caller learns
        whether a fault concerns one object or the primary. Concurrent callers share probes.
        """
        asked_at = self._timer()
        async with self._checking:
            if self.reason is None and self._probed_at <= asked_at:
                await self._try_probe()
        return self.reason is None

    async def _try_probe(self) -> bool:
        self._probed_at = self._timer()
        try:
            await self._probe()
        except StorageError as fault:
            self._fail(fault)
        except Exception:  # no answer may end the background task
            log.exception("probe of the primary store failed unexpectedly")
            self._fail(StorageError("the primary store gave an unexpected answer"))
        else:
            return True
        return False

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
