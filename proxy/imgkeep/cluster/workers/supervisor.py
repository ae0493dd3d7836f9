"""
The parent of several workers: holds the port, starts them, and replaces those that end or hang.

Rules:
- On SIGHUP the supervisor reloads the configuration and replaces each worker; on SIGTERM or SIGINT all workers drain.
- The supervisor serves no client and reads no image: plain blocking code that waits for signals and children.
- A listening socket for each worker stays open as long as the supervisor lives. A client that connects while a worker
  is replaced waits for the next one and is not refused. The kernel spreads connections (`SO_REUSEPORT`, socket(7)).
- Each worker is a new interpreter, so a worker that replaces another one runs the installed version of the program. It
  gets the configuration from the supervisor and reads no file, so it never starts with an invalid one.
- The supervisor notices the death of a worker at once, and so does each worker that of the supervisor (`control.py`).
  The supervisor replaces a live worker without heartbeats, because its clients would wait for ever.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import selectors
import signal
import socket
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.cluster.workers.control import HEARTBEAT_TIMEOUT_S
from imgkeep.cluster.workers.leases import remove_leases_of
from imgkeep.cluster.workers.worker_info import SharedFolder, WorkerInfo
from imgkeep.cluster.workers.worker_process import WorkerEvent, WorkerProcess, start_worker
from imgkeep.config import Config, ConfigError
from imgkeep.core.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SECRET_BYTES: Final = 32
EXIT_UNUSABLE: Final = 2
"""Exit status of a worker that fails whenever it starts: the configuration, or the database of a newer version."""

FOLDER_BYTES_MAX: Final = 90
"""Maximum length of the shared folder's path: a socket's has 107 bytes (man 7 unix), less `/999.999999.sock`."""

RESTART_DELAY_MIN_S: Final = 0.1
"""Delay of a restart; it doubles with each early death in a row, up to `RESTART_DELAY_MAX_S`."""
RESTART_DELAY_MAX_S: Final = 10
EARLY_DEATH_S: Final = 10
"""Maximum age of a worker whose death counts as early."""
START_TIMEOUT_S: Final = 300
"""Timeout for the start of a worker that is to replace another one: a migration of a large database takes its time."""
CHECK_INTERVAL_S: Final = 1
"""Interval of looks at deadlines and heartbeats."""
PAUSE_S: Final = 5
"""Minimum time between two looks after which the supervisor itself was stopped: it has heard no heartbeats then."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """The slot of one worker, and the process that runs in it at the moment."""

    sockets: list[socket.socket]
    worker: WorkerProcess | None = None
    early_deaths: int = 0
    """In a row."""
    start_at: float | None = None
    """When its next process starts."""


class Supervisor:
    """
    Runs `config.server.workers` processes.

    Args:
        sockets: The listening sockets of each worker.
        command: Starts a worker; its arguments are added.
        environment: The environment of workers.
        reload: Reads the configuration again.
        opened: Receives the addresses once, when all workers are ready.
        heartbeat_timeout_s: Timeout for the next heartbeat of a ready worker.
    """

    def __init__(  # noqa: PLR0913 - all but one by keyword
        self,
        config: Config,
        *,
        sockets: Sequence[list[socket.socket]],
        command: Sequence[str],
        environment: Mapping[str, str],
        reload: Callable[[], Config],
        opened: Callable[[Sequence[tuple[str, int]]], None],
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._command = command
        self._environment = environment
        self._read_config = reload
        self._opened = opened
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._slots = [_Slot(each) for each in sockets]
        self._folder = SharedFolder(Path())
        self._secret = token_hex(SECRET_BYTES)
        self._coming: WorkerProcess | None = None
        """Replaces the worker of its slot once it is ready."""
        self._draining: list[WorkerProcess] = []
        self._to_replace: deque[int] = deque()
        self._selector = selectors.DefaultSelector()
        self._serial = 0
        self._checked_at = time.monotonic()
        self._is_open = False
        self._status: int | None = None
        """The exit status; `None`: the supervisor goes on."""

    def run(self) -> int:
        """
        Supervise until SIGTERM or SIGINT, and return the exit status.

        Raises:
            ConfigError: The path of the temporary folder is too long.
            OSError: The system starts no worker.
        """
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            made = stack.enter_context(TemporaryDirectory(prefix="imgkeep-", ignore_cleanup_errors=True))
            self._folder = SharedFolder(Path(made))
            if len(os.fsencode(made)) > FOLDER_BYTES_MAX:
                raise ConfigError("server.workers: the path of the temporary folder (TMPDIR) is too long for sockets")
            self._folder.leases.mkdir()
            self._lock_folder(stack)
            self._catch_signals(stack)
            stack.callback(self._kill_all)
            self._start(0)  # alone, so that one worker reports why it does not start, and one migrates a database
            while self._status is None or self._all():
                for key, _ in self._selector.select(RESTART_DELAY_MIN_S if self._awaits_start else CHECK_INTERVAL_S):
                    key.data()
                self._check_clock()
            return self._status

    def _lock_folder(self, stack: ExitStack) -> None:
        """Keep programs that delete old temporary files out of the shared folder (man 5 tmpfiles.d)."""
        descriptor = os.open(self._folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def _catch_signals(self, stack: ExitStack) -> None:
        """Have signals wake the loop, which handles them."""
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        for end in (ours, theirs):
            end.setblocking(False)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(theirs.fileno()))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._handle_signals(ours.recv(64)))

    def _handle_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload()
            elif number in {signal.SIGTERM, signal.SIGINT}:
                self._end(0)

    # Workers that start.

    def _start(self, number: int) -> None:
        """
        Start a process for a slot: as its worker, or to replace the worker that it has.

        Raises:
            OSError: The system does not start it, and no worker has served yet.
        """
        slot = self._slots[number]
        slot.start_at = None
        try:
            worker = self._spawn(number)
        except OSError as error:
            if not self._is_open:
                raise
            facts = {"slot": number, "reason": error.strerror}
            if slot.worker is None:
                self._start_later(slot, "worker start failed; retrying", facts)
            else:
                self._abandon_reload(facts)
            return
        if slot.worker is None:
            slot.worker = worker
        else:
            self._coming = worker

    def _spawn(self, number: int) -> WorkerProcess:
        self._serial += 1
        slot = self._slots[number]
        worker = start_worker(
            info=WorkerInfo(f"{number}.{self._serial}", number, len(self._slots), str(self._folder.path), self._secret),
            sockets=slot.sockets,
            command=self._command,
            environment=self._environment,
            config=self._config,
            now=time.monotonic(),
            start_timeout_s=math.inf if slot.worker is None else START_TIMEOUT_S,
        )
        self._selector.register(worker.control, selectors.EVENT_READ, lambda: self._read(worker))
        return worker

    def _read(self, worker: WorkerProcess) -> None:
        control = worker.control
        for event in worker.read():
            was_ready = worker.is_ready
            worker.handle(event, time.monotonic())
            if event is WorkerEvent.CONTROL_CLOSED:
                self._selector.unregister(control)
                self._reap_dead()
            elif worker.is_ready and not was_ready:
                self._enter_service(worker)

    def _enter_service(self, worker: WorkerProcess) -> None:
        """Put a ready worker into its slot, and start the next step of a start or reload."""
        slot = self._slots[worker.slot]
        if worker is self._coming:
            self._coming = None
            if slot.worker is not None:
                self._dismiss(slot.worker)
            slot.worker, slot.early_deaths, slot.start_at = worker, 0, None
            # If another reload came meanwhile, another worker has to replace this one.
            if self._to_replace and self._to_replace[0] == worker.slot and worker.config is self._config:
                self._to_replace.popleft()
            self._replace_next()
        elif not self._is_open and self._status is None:
            for number, each in enumerate(self._slots):
                if each.worker is None:
                    self._start(number)
            if all(each.worker is not None and each.worker.is_ready for each in self._slots):
                self._is_open = True
                self._opened([sock.getsockname()[:2] for sock in self._slots[0].sockets])
        elif self._to_replace and self._coming is None:
            self._replace_next()

    def _start_later(self, slot: _Slot, message: str, facts: Mapping[str, object]) -> None:
        slot.early_deaths += 1
        delay_s = backoff_s(slot.early_deaths - 1, first_s=RESTART_DELAY_MIN_S, longest_s=RESTART_DELAY_MAX_S, draw=0)
        slot.start_at = time.monotonic() + delay_s
        log.error(message, extra={**facts, "delay_s": delay_s})

    # Workers that end.

    def _dismiss(self, worker: WorkerProcess) -> None:
        """Let a worker finish what it has begun, and end."""
        self._draining.append(worker)
        worker.drain(time.monotonic())

    def _replace_unresponsive(self, slot: _Slot, worker: WorkerProcess, now: float) -> None:
        """Start another worker for a slot whose worker lives and does nothing; SIGTERM first, and SIGKILL later."""
        worker.handle(WorkerEvent.HEARTBEAT_MISSED, now)
        worker.process.send_signal(signal.SIGTERM)
        slot.worker = None
        self._draining.append(worker)
        self._count_life(slot, worker, now)
        self._start_later(slot, "worker unresponsive; replacing", {"worker": worker.name, "pid": worker.process.pid})

    def _reap_dead(self) -> None:
        for worker in self._all():
            if worker.has_ended:
                self._reap(worker, worker.process.returncode)

    def _reap(self, worker: WorkerProcess, status: int) -> None:
        """Take note of the end of a worker."""
        remove_leases_of(worker.name, self._folder.leases)
        with suppress(OSError):
            self._folder.socket(worker.name).unlink()
        facts = {"worker": worker.name, "pid": worker.process.pid, "exit_status": status}
        if worker in self._draining:
            self._draining.remove(worker)
            return
        if worker is self._coming:
            self._coming = None
            if worker.config is not self._config:
                self._replace_next()
            elif self._status is None:
                self._abandon_reload(facts)
            return
        slot = self._slots[worker.slot]
        slot.worker = None
        if self._status is not None:
            # A worker that SIGTERM ended before it could handle signals has ended as requested.
            is_well = status == -signal.SIGTERM and not worker.was_ready
            self._status = self._status or (0 if is_well else _exit_status(status))
        elif not self._is_open and not worker.was_ready:
            self._end(_exit_status(status) or 1)
        elif status == EXIT_UNUSABLE:
            log.error("worker failed by the configuration or the database; shutting down", extra=facts)
            self._end(EXIT_UNUSABLE)
        else:
            self._count_life(slot, worker, time.monotonic())
            self._start_later(slot, "worker died; restarting", facts)

    @staticmethod
    def _count_life(slot: _Slot, worker: WorkerProcess, now: float) -> None:
        """Restart soon after a long life, and later each time after short ones."""
        if now - worker.started_at > EARLY_DEATH_S:
            slot.early_deaths = 0

    def _end(self, status: int) -> None:
        """Have all workers drain; the second time: have them hurry."""
        if self._status is None:
            self._status = status
            # The workers hold the sockets as well; a port without a listener has to refuse.
            for slot in self._slots:
                for sock in slot.sockets:
                    sock.close()
        self._status = self._status or status
        for worker in self._all():
            worker.terminate(time.monotonic())

    def _kill_all(self) -> None:
        for worker in self._all():
            worker.process.kill()
            worker.process.wait()

    # Reloads.

    def _reload(self) -> None:
        """Read the configuration again, and replace the workers one by one."""
        if self._status is not None or not self._is_open:
            return
        try:
            new = self._read_config()
        except ConfigError as error:
            reason = "; ".join(error.messages)
            log.error("reload failed: the configuration is not valid", extra={"reason": reason})  # noqa: TRY400
            return
        server = self._config.server
        fixed = {name: getattr(server, name) for name in ("host", "port", "workers", "metrics_address")}
        changed = [name for name, value in fixed.items() if getattr(new.server, name) != value]
        if changed:
            names = ", ".join(f"server.{name}" for name in changed)
            log.warning("setting ignored until the next restart", extra={"setting": names})
        self._config = msgspec.structs.replace(new, server=msgspec.structs.replace(new.server, **fixed))
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

    def _abandon_reload(self, facts: Mapping[str, object]) -> None:
        self._to_replace.clear()
        log.error("reload failed: a new worker does not start", extra=facts)

    def _check_clock(self) -> None:
        """Reap dead workers, start those that are due, and replace or kill those that take too long."""
        self._reap_dead()
        now = time.monotonic()
        was_paused, self._checked_at = now - self._checked_at > PAUSE_S, now
        for number, slot in enumerate(self._slots):
            if slot.start_at is not None and slot.start_at <= now and self._status is None:
                self._start(number)
            worker = slot.worker
            if worker is None or self._status is not None:
                continue
            if was_paused:
                worker.excuse(now)
            elif worker.misses_heartbeat(now, self._heartbeat_timeout_s):
                self._replace_unresponsive(slot, worker, now)
        for worker in self._all():
            if worker.deadline <= now:
                worker.process.kill()

    @property
    def _awaits_start(self) -> bool:
        return any(slot.start_at is not None for slot in self._slots)

    def _all(self) -> list[WorkerProcess]:
        coming = [] if self._coming is None else [self._coming]
        return [*(slot.worker for slot in self._slots if slot.worker is not None), *coming, *self._draining]


def _exit_status(status: int) -> int:
    """Return a status for the shell; a process that a signal ended has failed."""
    return status if status >= 0 else 1
