"""
The deadline for the end of a process after SIGTERM.

A disk that hangs holds the threads that wait for it, and the interpreter waits for its threads. So a process that has
not ended in time ends without them: what is durable stays so, and what is not is fetched again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Final, NoReturn

EXIT_TIMEOUT_S: Final = 27.0
"""
Timeout for a process to end after SIGTERM. Below the 30 s of `TimeoutStopSec` in `deploy/imgkeep.service` and of most
orchestrators, and above the 22 s that its notice and its grace take (`lifecycle.py`).
"""

log = logging.getLogger(__name__)


def start_exit_deadline() -> None:
    """End this process with a failure `EXIT_TIMEOUT_S` from now, whatever it waits for; it may end earlier."""
    threading.Thread(target=_exit_late, name="exit-deadline", daemon=True).start()


def _exit_late() -> NoReturn:
    time.sleep(EXIT_TIMEOUT_S)
    log.error("shutdown timed out: a disk or a service hangs", extra={"seconds": EXIT_TIMEOUT_S})
    os._exit(1)
