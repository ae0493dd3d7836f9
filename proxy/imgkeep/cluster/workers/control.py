"""
The control socket between the supervisor and one worker: both ends speak in messages of one byte.

Rules:
- A worker sends `READY` once, and then a `HEARTBEAT` from its event loop every second: a loop that is blocked, or a
  process that is stopped, sends none.
- The supervisor sends `DRAIN` to a worker that another one replaces.
- The end of the stream tells each side at once that the other process has ended, whatever the cause.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

READY: Final = b"R"
HEARTBEAT: Final = b"H"
DRAIN: Final = b"D"

HEARTBEAT_INTERVAL_S: Final = 1.0
"""Interval of heartbeats: often enough to tell a death from a pause, and next to nothing to send."""
HEARTBEAT_TIMEOUT_S: Final = 30.0
"""
Timeout for the next heartbeat of a ready worker. gunicorn's `timeout` has the same default: no sound worker blocks its
event loop for a tenth of it. A machine that swaps, or a debugger that stops a process for a moment, does not reach it.
"""
KILL_TIMEOUT_S: Final = 28.0
"""Timeout for a worker to end after it was told to. A worker ends itself earlier (`bootstrap/exit_deadline.py`)."""


class SupervisorLink:
    """
    The worker's end of the control socket.

    Attributes:
        stop: Set when this worker has to end.
        is_replaced: Whether other workers stay and serve.
        is_orphaned: Whether the supervisor is gone.
    """

    def __init__(self, control: socket.socket, *, heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S) -> None:
        self.stop = asyncio.Event()
        self.is_replaced = False
        self.is_orphaned = False
        self._control = control
        self._heartbeat_interval_s = heartbeat_interval_s
        self._loop = asyncio.get_running_loop()
        self._next_heartbeat: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen to the supervisor."""
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._read)

    def announce_ready(self) -> None:
        """Tell the supervisor that this worker serves, and send heartbeats from now on."""
        self._send(READY)
        self._beat()

    def close(self) -> None:
        """Send no more heartbeats; the socket closes with the process."""
        if self._next_heartbeat is not None:
            self._next_heartbeat.cancel()
        self._loop.remove_reader(self._control)

    def _beat(self) -> None:
        self._send(HEARTBEAT)
        self._next_heartbeat = self._loop.call_later(self._heartbeat_interval_s, self._beat)

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # a supervisor that is gone ends the stream; one that is stopped lets it fill
            self._control.send(message)

    def _read(self) -> None:
        data = b""
        with suppress(OSError):
            data = self._control.recv(64)
        if data:
            self.is_replaced = not self.stop.is_set()
        else:
            self._loop.remove_reader(self._control)
            self.is_orphaned = True
        self.stop.set()
