"""The interfaces to the machine: clock, resolver, sockets. Tests replace these and nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp

from imgkeep.clock import read_clock
from imgkeep.derived.derive_process import COMMAND
from imgkeep.images.format_checker import FormatChecker
from imgkeep.origin.ssrf_guard import open_socket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from aiohttp.abc import AbstractResolver

    from imgkeep.clock import Clock, Sleep
    from imgkeep.origin.ssrf_guard import SocketFactory


@dataclass(frozen=True)
class Platform:
    """
    The edges of the machine.

    Attributes:
        clock: The current time, aware UTC.
        timer: Monotonic seconds.
        sleep: Waits between the attempts of background tasks.
        resolver: Makes the resolver of names.
        open_socket: Makes the sockets of connections to origins.
        ssl_context: For origins; `None`: the system's certificates.
        make_format_checker: Makes the checker of images, with its threads.
        derive_command: The program of a derive process.
    """

    clock: Clock = read_clock
    timer: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver
    open_socket: SocketFactory = open_socket
    ssl_context: ssl.SSLContext | None = None
    make_format_checker: Callable[[], FormatChecker] = FormatChecker
    derive_command: Sequence[str] = COMMAND


SYSTEM: Final = Platform()
"""The real edges."""
