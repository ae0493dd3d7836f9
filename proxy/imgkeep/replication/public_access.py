"""
Public access: whether the public URLs of objects in the primary work, tried with an object of its own.

A redirect into a bucket that is not public is a broken image. So clients are redirected to public URLs only after a
probe has worked, and imgkeep serves the images meanwhile. The probe runs in the background: no start waits for it.

A public URL that this machine cannot reach proves nothing about clients: it may be a CDN before a private network.
Then the configuration counts, or what an earlier probe found.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy, StorageError
from imgkeep.core.layout import OBJECTS
from imgkeep.storage.bucket.errors import NotPublic, PublicUnreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.clock import Sleep

PUBLIC_INTERVAL_S: Final = 3600
"""Interval of the probes while public URLs work: an operator may close the bucket. Each is a PUT, GET and DELETE."""
DENIED_INTERVAL_S: Final = 60
"""Interval of the probes while they do not, or are not reached: an open bucket gets redirects a minute later."""
FAULT_INTERVAL_S: Final = 15
"""Interval of the probes while the bucket fails: its circuit breaker is open, and the images are served."""

log = logging.getLogger(__name__)


class PublicAccess:
    """
    The last finding about the public URLs of a bucket.

    Args:
        sleep: Waits for a number of seconds.
        folder: Where they lead, as the log names it.

    Attributes:
        works: Whether clients may be redirected to public URLs; `None`: not known yet.
    """

    def __init__(self, sleep: Sleep, folder: str = OBJECTS) -> None:
        self.works: bool | None = None
        self._folder = folder
        self._sleep = sleep

    async def run(self, probe: Callable[[], Awaitable[None]]) -> None:
        """Try the public URLs now and then, for ever, by a `probe` that raises as `live_check.try_public`."""
        while True:
            await self._sleep(await self._try(probe))

    async def _try(self, probe: Callable[[], Awaitable[None]]) -> float:
        """Try the public URLs once, and return after how many seconds to try them again."""
        before = self.works
        try:
            await probe()
        except NotPublic as fault:
            self.works = False
            if before is not False:
                facts = {"folder": self._folder, "reason": fault.in_full, "remedy": fault.remedy}
                log.warning("public URLs refused: no client is redirected to them", extra=facts)
            return DENIED_INTERVAL_S
        except PublicUnreachable as fault:
            self.works = before is not False
            if before is None:
                facts = {"folder": self._folder, "reason": fault.in_full}
                log.warning("public URLs not reached from this machine", extra=facts)
            return DENIED_INTERVAL_S
        except (StorageError, Busy):
            return FAULT_INTERVAL_S  # of the bucket itself, or of this node: its health tells
        self.works = True
        if before is not True:
            log.info("public URLs work", extra={"folder": self._folder})
        return PUBLIC_INTERVAL_S
