"""
The parent of several workers: holds the port, starts them, and starts them again.

Rules:
- It serves nothing and knows nothing of images: plain blocking code that waits for signals and for its children.
- A listening socket for each worker is open for as long as we live, so whoever connects while a worker is replaced
  waits for the next one and is not refused. The kernel spreads connections over them (`SO_REUSEPORT`, man 7 socket).
- Each worker is a new interpreter, so one that is started on SIGHUP has the program and the configuration of today. It
  gets the configuration from us and reads none: what was not found valid is never started with.
- What is secret goes to a worker through a pipe: arguments can be read by every user of the machine (man 5 proc).
- A pair of sockets connects us with each. It says `READY`, we say `DRAIN`, and who reads the end of it is alone: a
  worker's death is noticed at once, and ours by every worker, however it came.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.config import Config, ConfigError
from imgkeep.core.records import WorkerInfo
from imgkeep.listening import listen_for_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

READY: Final = b"R"
DRAIN: Final = b"L"

SECRET_BYTES: Final = 32
EXIT_UNUSABLE: Final = 2
"""Exit status of a worker that another start would not help: the configuration, or the database of a newer version."""

FOLDER_BYTES_MAX: Final = 90
"""The path of a socket has 107 bytes at most (man 7 unix); this leaves room for `/999.999999.sock`."""

DELAY_MIN_S: Final = 0.1
DELAY_MAX_S: Final = 10
LONG_LIFE_S: Final = 10
"""Who dies later than this is started again at once, and who dies sooner, later each time."""
START_MAX_S: Final = 300
"""For one that is to replace another: a migration of a large database takes its time."""
END_MAX_S: Final = 60
"""A worker has ended by itself by then (notice and grace of `app.py`)."""
LAST_MAX_S: Final = 5
"""A process that has nothing more to say is gone by then, unless its disk hangs."""
CHECK_INTERVAL_S: Final = 1
"""At whether somebody takes too long."""

log = logging.getLogger(__name__)


class WorkerSetup(msgspec.Struct):
    """What a worker reads from its standard input."""

    config: Config
    secret: str
    """`WorkerInfo.secret`."""

    def __repr__(self) -> str:
        return "WorkerSetup()"


@dataclass(eq=False, slots=True)
class _Worker:
    slot: int
    name: str
    process: subprocess.Popen[bytes]
    control: socket.socket
    config: Config
    born_at: float
    ready: bool = False
    silent: bool = False
    """Whether it has ended, or is about to."""
    end_by: float | None = None
    """When it is killed."""


@dataclass(slots=True)
class _Slot:
    """One of the workers, whichever process it is at the moment."""

    sockets: list[socket.socket]
    worker: _Worker | None = None
    deaths: int = 0
    """In a row, and early."""
    start_at: float | None = None
    """When it is started again."""


@dataclass(slots=True)
class Supervisor:
    """
    Runs `config.server.workers` processes.

    Attributes:
        command: Starts a worker; what tells it its place is added.
        environment: What workers run in.
        reload: Reads the configuration again.
        opened: Is told once, with the addresses, when all workers are ready.
    """

    config: Config
    command: Sequence[str]
    environment: Mapping[str, str]
    reload: Callable[[], Config]
    opened: Callable[[Sequence[tuple[str, int]]], None]
    _folder: Path = field(default=Path(), init=False)
    _secret: str = field(default_factory=partial(token_hex, SECRET_BYTES), init=False, repr=False)
    _slots: list[_Slot] = field(default_factory=list, init=False)
    _coming: _Worker | None = field(default=None, init=False)
    """Will take the place of its slot's worker once it is ready."""
    _leaving: list[_Worker] = field(default_factory=list, init=False)
    _to_replace: deque[int] = field(default_factory=deque, init=False)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector, init=False)
    _serial: int = field(default=0, init=False)
    _is_open: bool = field(default=False, init=False)
    _status: int | None = field(default=None, init=False)
    """How we end; `None`: not yet."""

    def run(self) -> int:
        """
        Supervise until SIGTERM or SIGINT, and return the exit status.

        Raises:
            ConfigError: This system cannot do it, or an address is not this machine's.
            OSError: The port is in use.
        """
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            self._slots = [_Slot(sockets) for sockets in listen_for_workers(self.config.server, stack)]
            made = stack.enter_context(TemporaryDirectory(prefix="imgkeep-", ignore_cleanup_errors=True))
            self._folder = Path(made)
            if len(os.fsencode(made)) > FOLDER_BYTES_MAX:
                raise ConfigError("server.workers: the path of the temporary folder (TMPDIR) is too long for sockets")
            (self._folder / WorkerInfo.LEASES).mkdir()
            self._lock_folder(stack)
            self._hear_signals(stack)
            stack.callback(self._kill_all)
            self._start(0)  # alone, so that what keeps it from starting is told once, and a database is migrated once
            while self._status is None or self._all():
                for key, _ in self._selector.select(CHECK_INTERVAL_S if self._next_start() is None else DELAY_MIN_S):
                    key.data()
                self._look_at_clock()
            return self._status

    def _lock_folder(self, stack: ExitStack) -> None:
        """Keep those who tidy up temporary folders out of ours (man 5 tmpfiles.d)."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def _hear_signals(self, stack: ExitStack) -> None:
        """Have signals wake the loop, and be handled there."""
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        for end in (ours, theirs):
            end.setblocking(False)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(theirs.fileno()))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._take_signals(ours.recv(64)))

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload()
            elif number in {signal.SIGTERM, signal.SIGINT}:
                self._end(0)

    def _start(self, slot: int) -> None:
        """
        Start a process for a slot: as its worker, or to replace the one it has.

        Raises:
            OSError: It cannot be started, and no worker could be yet.
        """
        place = self._slots[slot]
        place.start_at = None
        try:
            worker = self._spawn(slot)
        except OSError as error:
            if not self._is_open:
                raise
            facts = {"slot": slot, "reason": error.strerror}
            if place.worker is None:
                self._start_later(place, "a worker cannot be started; trying again", facts)
            else:
                self._give_up(facts)
            return
        if place.worker is None:
            place.worker = worker
        else:
            self._coming = worker
            worker.end_by = worker.born_at + START_MAX_S

    def _spawn(self, slot: int) -> _Worker:
        """Start a process. Raises: OSError: The system does not."""
        self._serial += 1
        name = f"{slot}.{self._serial}"
        place = self._slots[slot]
        ours, theirs = socket.socketpair()
        descriptors = [sock.fileno() for sock in place.sockets]
        told = {"name": name, "slot": slot, "workers": len(self._slots), "folder": str(self._folder)}
        with theirs, ExitStack() as stack:
            stack.enter_context(ours)
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [
                    *self.command,
                    *("--place", msgspec.json.encode(told).decode(), "--control", str(theirs.fileno())),
                    *("--listen", ",".join(map(str, descriptors))),
                ],
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                pass_fds=[*descriptors, theirs.fileno()],
            )
            stack.pop_all()
        worker = _Worker(slot, name, process, ours, self.config, time.monotonic())
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:  # if it is dead, we shall read that
            process.stdin.write(msgspec.json.encode(WorkerSetup(self.config, self._secret)))
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(worker))
        return worker

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.control.recv(1)
        except OSError:
            said = b""
        if said == READY:
            self._welcome(worker)
        elif not said:
            self._selector.unregister(worker.control)
            worker.control.close()
            worker.silent = True
            worker.end_by = min(worker.end_by or math.inf, time.monotonic() + LAST_MAX_S)
            self._bury_dead()

    def _welcome(self, worker: _Worker) -> None:
        worker.ready = True
        worker.end_by = None
        slot = self._slots[worker.slot]
        if worker is self._coming:
            self._coming = None
            if slot.worker is not None:
                self._dismiss(slot.worker)
            slot.worker, slot.deaths, slot.start_at = worker, 0, None
            # After another reload meanwhile, it has to be replaced in its turn.
            if self._to_replace and self._to_replace[0] == worker.slot and worker.config is self.config:
                self._to_replace.popleft()
            self._replace_next()
        elif not self._is_open and self._status is None:
            for number, each in enumerate(self._slots):
                if each.worker is None:
                    self._start(number)
            if all(each.worker is not None and each.worker.ready for each in self._slots):
                self._is_open = True
                self.opened([sock.getsockname()[:2] for sock in self._slots[0].sockets])
        elif self._to_replace and self._coming is None:
            self._replace_next()

    def _dismiss(self, worker: _Worker) -> None:
        """Let a worker finish what it has begun, and go."""
        self._leaving.append(worker)
        worker.end_by = min(worker.end_by or math.inf, time.monotonic() + END_MAX_S)
        with suppress(OSError):
            worker.control.send(DRAIN)

    def _bury_dead(self) -> None:
        for worker in self._all():
            status = worker.process.poll() if worker.silent else None
            if status is not None:
                self._bury(worker, status)

    def _bury(self, worker: _Worker, status: int) -> None:
        """A worker has ended."""
        self._tidy(worker.name)
        facts = {"worker": worker.name, "pid": worker.process.pid, "exit_status": status}
        if worker in self._leaving:
            self._leaving.remove(worker)
            return
        if worker is self._coming:
            self._coming = None
            if worker.config is not self.config:
                self._replace_next()
            elif self._status is None:
                self._give_up(facts)
            return
        slot = self._slots[worker.slot]
        slot.worker = None
        if self._status is not None:
            # One that was told to end before it could hear of it has done so.
            is_well = status == -signal.SIGTERM and not worker.ready
            self._status = self._status or (0 if is_well else _exit_status(status))
        elif not self._is_open:
            self._end(_exit_status(status) or 1)
        elif status == EXIT_UNUSABLE:
            log.error("a worker has ended because of the configuration or the database; ending", extra=facts)
            self._end(EXIT_UNUSABLE)
        else:
            if time.monotonic() - worker.born_at > LONG_LIFE_S:
                slot.deaths = 0
            self._start_later(slot, "a worker has died and is started again", facts)

    def _start_later(self, slot: _Slot, why: str, facts: Mapping[str, object]) -> None:
        slot.deaths += 1
        delay_s = min(DELAY_MIN_S * 2.0 ** (slot.deaths - 1), DELAY_MAX_S)
        slot.start_at = time.monotonic() + delay_s
        log.error(why, extra={**facts, "delay_s": delay_s})

    def _give_up(self, facts: Mapping[str, object]) -> None:
        """End a reload."""
        self._to_replace.clear()
        log.error("a new worker does not start; going on with those there are", extra=facts)

    def _tidy(self, name: str) -> None:
        """Remove what a worker that has ended left behind: its leases, so that others can fetch, and its socket."""
        with suppress(OSError), os.scandir(self._folder / WorkerInfo.LEASES) as leases:
            for lease in map(Path, leases):
                with suppress(OSError):
                    if str(lease.readlink()) == name:
                        lease.unlink()
        with suppress(OSError):
            (self._folder / f"{name}.sock").unlink()

    def _reload(self) -> None:
        """Read the configuration again, and replace the workers one by one."""
        if self._status is not None or not self._is_open:
            return
        try:
            new = self.reload()
        except ConfigError as error:
            reason = "; ".join(error.messages)
            log.error("the configuration is not valid; going on as before", extra={"reason": reason})  # noqa: TRY400
            return
        server = self.config.server
        fixed = {name: getattr(server, name) for name in ("host", "port", "workers", "metrics_address")}
        changed = [name for name, value in fixed.items() if getattr(new.server, name) != value]
        if changed:
            names = ", ".join(f"server.{name}" for name in changed)
            log.warning("a change that needs a restart is left out", extra={"setting": names})
        self.config = msgspec.structs.replace(new, server=msgspec.structs.replace(new.server, **fixed))
        log.info("reloading", extra={"workers": len(self._slots)})
        self._to_replace = deque(range(len(self._slots)))
        self._replace_next()

    def _replace_next(self) -> None:
        if self._status is not None or self._coming is not None:
            return
        while self._to_replace:
            slot = self._slots[self._to_replace[0]]
            if slot.worker is not None:
                self._start(self._to_replace[0])  # it leaves the queue once it is ready
                return
            self._start(self._to_replace.popleft())
        if self._is_open:
            log.info("reloaded")

    def _end(self, status: int) -> None:
        """Have all workers drain. Again: have them hurry."""
        if self._status is None:
            self._status = status
            # They have the sockets as well; what nobody listens on any more has to refuse.
            for slot in self._slots:
                for sock in slot.sockets:
                    sock.close()
        self._status = self._status or status
        for worker in self._all():
            worker.process.send_signal(signal.SIGTERM)
            worker.end_by = worker.end_by or time.monotonic() + END_MAX_S

    def _look_at_clock(self) -> None:
        """Bury who is dead, start who is due, and kill who takes too long."""
        self._bury_dead()
        now = time.monotonic()
        for number, slot in enumerate(self._slots):
            if slot.start_at is not None and slot.start_at <= now and self._status is None:
                self._start(number)
        for worker in self._all():
            if worker.end_by is not None and worker.end_by <= now:
                worker.process.kill()

    def _next_start(self) -> float | None:
        return min((slot.start_at for slot in self._slots if slot.start_at is not None), default=None)

    def _all(self) -> list[_Worker]:
        coming = [] if self._coming is None else [self._coming]
        return [*(slot.worker for slot in self._slots if slot.worker is not None), *coming, *self._leaving]

    def _kill_all(self) -> None:
        """We end as nobody foresaw: nobody is left behind."""
        for worker in self._all():
            worker.process.kill()
            worker.process.wait()


def _exit_status(status: int) -> int:
    """Return what a shell is told; one that was killed has failed."""
    return status if status >= 0 else 1
