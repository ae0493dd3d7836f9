"""
A server program on loopback that can be started, stopped and frozen, and keeps its port all the while.

It is killed with the tests, however these end, and is silent: what it says is in `log` of its folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.loopback import HOST, listens, port_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

# The signal for a child whose parent ends (prctl(2), PR_SET_PDEATHSIG) outlives exec, so any program can be started
# with it. The parent may have ended before the signal was set.
LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def _environment() -> dict[str, str]:
    foreign = ("AWS_", "RCLONE_", "MOTO_", "S3_", "COVERAGE_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}  # noqa: TID251 - tests read what they run in
    return own | {"AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class ServerProcess:
    """
    A server program on a reserved port.

    Attributes:
        command: The program and its arguments; makes it listen on the port of `holder`.
        folder: Where it may write, and its log is.
        holder: Keeps the port while the server is stopped.
        host: The address that it listens on.
    """

    command: Sequence[str]
    folder: Path
    holder: socket.socket
    host: str = HOST
    _process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ready(self) -> bool:
        """
        Whether the server listens.

        Raises:
            AssertionError: It has ended instead.
        """
        assert self.running, f"{self.command[0]} ended: {self._log.read_text('utf-8', 'replace')}"
        return listens(port_of(self.holder), self.host)

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def launch(self) -> None:
        """Start the server and do not wait for it."""
        assert not self.running
        # The parent, for the kernel, is the thread that starts a process: the server would end with that thread.
        assert threading.current_thread() is threading.main_thread()
        leash = [sys.executable, "-ISc", LEASH, str(os.getpid())]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*leash, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment(),
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop the process: the kernel still accepts connections, and no answer comes."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
