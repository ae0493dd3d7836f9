"""
One worker as its supervisor sees it: a process, a control socket and a state.

`TRANSITIONS` says what each event means in each state, and `TIMEOUTS_S` how long a worker may stay in a state until the
supervisor kills it.

    STARTING --READY--> READY --HEARTBEAT_MISSED--> UNRESPONSIVE
        |                 |                             |  heartbeats again
        |  DRAIN, TERMINATE (either)                    v
        +-----------------+------------------------> DRAINING
                                                        |
    any state --CONTROL_CLOSED--> EXITING <-------------+
"""

from __future__ import annotations

import enum
import math
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.cluster.workers.control import DRAIN, HEARTBEAT, KILL_TIMEOUT_S, READY
from imgkeep.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgkeep.cluster.workers.worker_info import WorkerInfo

READ_BYTES: Final = 4096

TERMINATE_TIMEOUT_S: Final = 5.0
"""Timeout for an unresponsive worker to react to SIGTERM; a stopped or blocked one does not."""
LAST_TIMEOUT_S: Final = 5.0
"""Timeout for a process that has closed its control socket: it has nothing to do but end."""


class WorkerState(enum.Enum):
    """The state of a worker."""

    STARTING = "starting"
    READY = "ready"
    UNRESPONSIVE = "unresponsive"
    """It lives and sends no heartbeats; it was sent SIGTERM."""
    DRAINING = "draining"
    """It was told to end and finishes what it has begun."""
    EXITING = "exiting"
    """It has closed its control socket."""


class WorkerEvent(enum.Enum):
    """An event in the life of a worker."""

    READY = "ready"
    HEARTBEAT = "heartbeat"
    HEARTBEAT_MISSED = "heartbeat missed"
    DRAIN = "drain"
    """The supervisor tells it to end, because another worker replaces it."""
    TERMINATE = "terminate"
    """The supervisor sends it SIGTERM, because all end."""
    CONTROL_CLOSED = "control closed"


_S, _E = WorkerState, WorkerEvent

TRANSITIONS: Final[Mapping[WorkerState, Mapping[WorkerEvent, WorkerState]]] = {
    _S.STARTING: {
        _E.READY: _S.READY,
        _E.DRAIN: _S.DRAINING,
        _E.TERMINATE: _S.DRAINING,
        _E.CONTROL_CLOSED: _S.EXITING,
    },
    _S.READY: {
        _E.HEARTBEAT_MISSED: _S.UNRESPONSIVE,
        _E.DRAIN: _S.DRAINING,
        _E.TERMINATE: _S.DRAINING,
        _E.CONTROL_CLOSED: _S.EXITING,
    },
    _S.UNRESPONSIVE: {
        _E.HEARTBEAT: _S.DRAINING,  # it runs again, so it reacts to SIGTERM
        _E.CONTROL_CLOSED: _S.EXITING,
    },
    _S.DRAINING: {_E.CONTROL_CLOSED: _S.EXITING},
    _S.EXITING: {},
}
"""An event that a state does not name changes nothing."""

TIMEOUTS_S: Final[Mapping[WorkerState, float]] = {
    _S.UNRESPONSIVE: TERMINATE_TIMEOUT_S,
    _S.DRAINING: KILL_TIMEOUT_S,
    _S.EXITING: LAST_TIMEOUT_S,
}
"""After them the supervisor kills a worker; a state without one may last."""

_MESSAGES: Final = {READY[0]: WorkerEvent.READY, HEARTBEAT[0]: WorkerEvent.HEARTBEAT}


class WorkerSetup(msgspec.Struct):
    """The input of a worker on its standard input: arguments are visible to every user of the machine (man 5 proc)."""

    config: Config
    secret: str
    """`WorkerInfo.secret`."""

    def __repr__(self) -> str:
        return "WorkerSetup()"


class WorkerProcess:
    """
    A worker.

    Attributes:
        config: The configuration that it was started with.
        was_ready: Whether it has ever served.
        deadline: When the supervisor kills it, by `time.monotonic`.
    """

    def __init__(  # noqa: PLR0913 - what `start_worker` has made
        self,
        info: WorkerInfo,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        config: Config,
        *,
        now: float,
        start_timeout_s: float,
    ) -> None:
        self.name = info.name
        self.slot = info.slot
        self.process = process
        self.control = control
        self.config = config
        self.started_at = now
        self.state = WorkerState.STARTING
        self.was_ready = False
        self.deadline = now + start_timeout_s
        self._heard_at = now

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone. A worker that still has its control socket has not ended."""
        return self.state is WorkerState.EXITING and self.process.poll() is not None

    def handle(self, event: WorkerEvent, now: float) -> None:
        """Move on by `TRANSITIONS`."""
        new = TRANSITIONS[self.state].get(event, self.state)
        if event in {WorkerEvent.READY, WorkerEvent.HEARTBEAT}:
            self._heard_at = now
        if new is self.state:
            return
        limit = now + TIMEOUTS_S.get(new, math.inf)
        # A worker that is about to end gets no more time by that.
        self.deadline = min(self.deadline, limit) if new is WorkerState.EXITING else limit
        self.was_ready = self.was_ready or new is WorkerState.READY
        self.state = new

    def read(self) -> list[WorkerEvent]:
        """Read what the worker has sent. At the end of the stream the control socket is closed."""
        try:
            data = self.control.recv(READ_BYTES)
        except OSError:
            data = b""
        if data:
            return [_MESSAGES[byte] for byte in data if byte in _MESSAGES]
        self.control.close()
        return [WorkerEvent.CONTROL_CLOSED]

    def drain(self, now: float) -> None:
        """Tell it to finish what it has begun, and to end while other workers stay."""
        self.handle(WorkerEvent.DRAIN, now)
        with suppress(OSError):
            self.control.send(DRAIN)

    def terminate(self, now: float) -> None:
        """Tell it to drain; again: tell it to hurry."""
        self.handle(WorkerEvent.TERMINATE, now)
        self.process.send_signal(signal.SIGTERM)

    def misses_heartbeat(self, now: float, timeout_s: float) -> bool:
        return self.is_ready and now - self._heard_at > timeout_s

    def excuse(self, now: float) -> None:
        """Begin to wait for a heartbeat anew: the supervisor itself did not run, and cannot tell."""
        self._heard_at = now


def start_worker(  # noqa: PLR0913 - all by keyword
    *,
    info: WorkerInfo,
    sockets: Sequence[socket.socket],
    command: Sequence[str],
    environment: Mapping[str, str],
    config: Config,
    now: float,
    start_timeout_s: float,
) -> WorkerProcess:
    """
    Start the process of a worker that listens on `sockets`.

    Raises:
        OSError: The system does not start it.
    """
    ours, theirs = socket.socketpair()
    descriptors = [sock.fileno() for sock in sockets]
    told = {"name": info.name, "slot": info.slot, "workers": info.workers, "folder": info.folder}
    with theirs, ExitStack() as stack:
        stack.enter_context(ours)
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [
                *command,
                *("--worker", msgspec.json.encode(told).decode(), "--control", str(theirs.fileno())),
                *("--listen", ",".join(map(str, descriptors))),
            ],
            env=dict(environment),
            stdin=subprocess.PIPE,
            pass_fds=[*descriptors, theirs.fileno()],
        )
        stack.pop_all()
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:  # the end of its control socket tells that it is dead
        process.stdin.write(msgspec.json.encode(WorkerSetup(config, info.secret)))
    return WorkerProcess(info, process, ours, config, now=now, start_timeout_s=start_timeout_s)
