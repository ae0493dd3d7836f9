"""
A circuit breaker: one failure of the primary opens it, and only a trial behind everybody's back closes it again.

What may be the fault of one image alone is suspected only: a trial at once tells, and nobody is turned away before.

So an outage costs the visitors who meet it the store's time limit once, and nobody after them anything; none of them is
ever the one who tries whether the primary is back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import RemoteFault, StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.clock import Sleep

DELAY_MIN_S: Final = 1
DELAY_MAX_S: Final = 15
"""Between two trials: so long an outage lasts for us after it is over, at most, give or take half of it."""
CALM_S: Final = 60
"""A primary that fails again sooner than this after a trial is given more time before the next."""
LOG_EVERY_S: Final = 60

log = logging.getLogger(__name__)


class CircuitBreaker:
    """Open while `reason` is set. `trial` raises a `StorageError` as long as the primary does not work."""

    def __init__(
        self,
        trial: Callable[[], Awaitable[None]],
        *,
        draw: Callable[[], float],
        timer: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.place = ""
        """What a fault says that does not say by itself where it was met."""
        self._sleep = sleep
        self._trial = trial
        self._draw = draw
        self._timer = timer
        self._delay_s: float = DELAY_MIN_S
        self._closed_at = float("-inf")
        self._logged_at = float("-inf")
        self.reason: str | None = None
        """Why it is open, as clients may read it."""
        self.in_full = ""
        """Why, as operators read it."""
        self.closed = asyncio.Event()
        self.closed.set()
        self._wake = asyncio.Event()
        self._tried_at = float("-inf")
        self.tell: Callable[[str | None], None] = lambda _: None
        """Is told why it opened, and `None` when it is closed again."""

    def report_failure(self, fault: RemoteFault) -> None:
        """Open because of `fault`, or have a trial tell whether to."""
        if fault.general:
            self.trip(fault)
        elif self._timer() - self._tried_at >= DELAY_MIN_S:
            self._wake.set()

    def trip(self, fault: StorageError) -> None:
        """Open, because of `fault`."""
        first = self.reason is None
        fault.place = fault.place or self.place
        self.reason, self.in_full = str(fault), fault.in_full
        self.tell(self.in_full)
        if not first:
            return
        restless = self._timer() - self._closed_at < CALM_S
        self._delay_s = min(self._delay_s * 2, DELAY_MAX_S) if restless else DELAY_MIN_S
        self.closed.clear()
        self._wake.set()
        if self._timer() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = self._timer()
            log.error("the primary store fails; the fallback takes over", extra={"reason": self.in_full})

    async def run(self) -> None:
        """Try, for ever, whether the primary works again."""
        while True:
            await self._wake.wait()
            if self.reason is not None:
                await self._sleep(self._delay_s * (0.5 + self._draw()))
            self._tried_at = self._timer()
            try:
                await self._trial()
            except StorageError as fault:
                self._fail(fault)
            except Exception:  # this loop must not end, whatever an answer holds
                log.exception("a trial of the primary store failed as nobody foresaw")
                self._fail(StorageError("the primary store answers what nobody foresaw"))
            else:
                self._close()

    def _fail(self, fault: StorageError) -> None:
        if self.reason is not None:
            self._delay_s = min(self._delay_s * 2, DELAY_MAX_S)
        self.trip(fault)

    def _close(self) -> None:
        self._wake.clear()
        if self.reason is None:
            return
        self.reason = None
        self.tell(None)
        self._closed_at = self._timer()
        self.closed.set()
        log.info("the primary store works again")
