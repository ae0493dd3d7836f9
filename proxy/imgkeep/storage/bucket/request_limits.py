"""What every request to a bucket has: a slot, a timeout, a typed error, and a place in the metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.errors import Busy
from imgkeep.storage.bucket.body import DraftPart
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

T = TypeVar("T")

REQUESTS_MAX: Final = 128
"""Maximum number of requests under way: twice the number of fills. More would only share the bandwidth."""
QUEUE_TIMEOUT_S: Final = 10
"""Timeout for a request slot."""
ATTEMPTS_MAX: Final = 2
"""Maximum number of attempts: one 500 in a million is normal, two in a row are an outage, for the circuit breaker."""


class RequestLimits:
    """
    The limits and the metrics of all requests to one bucket.

    Args:
        place: Name of the bucket in faults.
        timeout_s: Timeout for a call that makes no progress.
        observe: Receives operation, outcome and seconds of each call.
        translate: Returns any error of a call as one of imgkeep, without secrets.
        answers: Error codes that come from a bucket that works: of a missing object, or of a condition that fails.
    """

    def __init__(
        self,
        place: str,
        *,
        timeout_s: float,
        observe: Callable[[str, str, float], None],
        translate: Callable[[Exception], Exception],
        answers: Container[str],
    ) -> None:
        self.place = place
        self.timeout_s = timeout_s
        self.answered_at = float("-inf")
        """Time of the last proper answer of the bucket, on the loop's clock."""
        self._observe = observe
        self._translate = translate
        self._answers = answers
        self._slots = asyncio.Semaphore(REQUESTS_MAX)

    async def acquire_slot(self) -> None:
        """Wait for a slot; the caller calls `release_slot`. Raises: Busy."""
        # A wait for a slot is no fault of the bucket, so it has a timeout of its own.
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise Busy("too many requests to the bucket are under way", retry_after_s=2) from None

    def release_slot(self) -> None:
        self._slots.release()

    async def run(self, operation: str, work: Callable[[], Awaitable[T]], body: object = None) -> T:
        """
        Do the work of one call, which has a slot.

        Args:
            operation: Its name in the metrics.
            work: The call.
            body: The body that it sends. A `DraftPart` prolongs the timeout with every piece that is read.

        Raises:
            BucketError: It failed, or made no progress for `timeout_s`.
            StorageError: The draft cannot be read, which is no fault of the bucket.
        """
        loop = asyncio.get_running_loop()
        start, outcome = loop.time(), "cancelled"
        part = body if isinstance(body, DraftPart) else None
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                if part is not None:
                    part.progress = lambda: limit.reschedule(loop.time() + self.timeout_s)
                result = await work()
            outcome = "ok"
        except Exception as error:  # noqa: BLE001 - each is translated, at least to "speaks another protocol"
            if part is not None and part.failure is not None:
                outcome = "draft"
                raise part.failure from None
            failure = self.name(self._translate(error))
            outcome = getattr(failure, "error_code", "") or "unreachable"
            if outcome in self._answers:
                self.answered_at = loop.time()
            raise failure from None
        finally:
            if part is not None:
                part.progress = lambda: None  # a server may answer, and go on reading
            self._observe(operation, outcome, loop.time() - start)
        self.answered_at = loop.time()
        return result

    def reject_answer(self, error: BucketError) -> BucketError:
        """Note that what came is no answer of the service, as a portal's page is none; return the error for it."""
        self.answered_at = float("-inf")
        error.place = error.place or self.place
        return error

    def name(self, fault: Exception) -> Exception:
        """Add the bucket's name to a fault of the bucket."""
        if isinstance(fault, BucketError):
            fault.place = fault.place or self.place
        return fault
