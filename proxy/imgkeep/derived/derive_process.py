"""
One derive process, as the process that serves sees it.

Rules:
- It has one job at a time, and answers each once. It says `Ready` first. Whatever else it says ends it.
- It inherits one socket, and nothing of the environment but what its interpreter needs: no secret reaches it.
- It ends when its socket closes, so it outlives no server, not even one that was killed.
- Nothing here blocks the event loop: a thread starts the process and waits for its end; the socket does not block.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.derived.messages import (
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    Ready,
    decode_answer,
    decode_greeting,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from imgkeep.derived.messages import Answer, Job, ProcessLimits

START_TIMEOUT_S: Final = 30
"""Timeout for a process to be ready: an interpreter and libvips load in a quarter of a second on an idle machine."""
EXIT_TIMEOUT_S: Final = 1
"""Timeout for a process without a socket to end by itself, which tells why it ended; then it is killed."""
LAST_TIMEOUT_S: Final = 5
"""Timeout for a killed process to be gone."""
READ_BYTES: Final = 65_536

COMMAND: Final = (sys.executable, "-P", "-m", "imgkeep.derived.process")
_INHERITED: Final = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "TZ",
)
"""Variables of the environment that an interpreter and a library may need to start."""
_OWN: Final = {
    "VIPS_CONCURRENCY": "1",  # the machine's cores run one process each
    "VIPS_BLOCK_UNTRUSTED": "1",
    "MALLOC_ARENA_MAX": "2",  # each arena takes 64 MB of the address space that the process may have
}


class Ending(Enum):
    """The reason for which a process has ended, as metrics name it."""

    IDLE = "idle"
    """It had no job for a while."""
    RECYCLED = "recycled"
    """It has done as many jobs as one process does, or as it wants to."""
    CLOSED = "closed"
    """The server ends."""
    ABANDONED = "abandoned"
    """Its job was given up."""
    TIMED_OUT = "timed_out"
    """Its job took too long, and this process or the kernel has killed it."""
    CRASHED = "crashed"
    """It ended by itself, or said something that is no answer."""
    KILLED = "killed"
    """Another program or the kernel killed it: an operator, or the system for lack of memory."""


_ENDINGS: Final = {0: Ending.RECYCLED, -signal.SIGKILL: Ending.KILLED, -signal.SIGXCPU: Ending.TIMED_OUT}
"""By the exit status of a process that has ended by itself, or by the kernel."""


class ProcessEnded(Exception):
    """
    A process has ended without an answer.

    Attributes:
        ending: Why.
        status: Its exit status; negative: the signal.
        began: Whether the job may have reached it.
    """

    def __init__(self, ending: Ending, status: int | None, *, began: bool) -> None:
        super().__init__(f"derive process {ending.value}, status {status}")
        self.ending = ending
        self.status = status
        self.began = began


class StartFailed(Exception):
    """
    A process did not get ready.

    Attributes:
        lasting: Whether the next one will fail too, because a library is missing.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Launch:
    """
    The program of derive processes, and what it starts with.

    Attributes:
        limits: What the processes may use.
        threads: Threads that start processes and wait for their ends.
        environment: The environment of this process.
        command: The program.
        verbose: Whether messages of libraries reach the standard error of this process.
    """

    limits: ProcessLimits
    threads: Executor
    environment: Mapping[str, str]
    command: Sequence[str] = COMMAND
    verbose: bool = False


class DeriveProcess:
    """
    A derive process that has been started.

    Attributes:
        ready: What it can do, as soon as it has said so.
        jobs: Number of jobs that it has begun.
        ending: Why it has ended; `None`: it runs.
        idle_timer: Ends it, while it has no job.

    Args:
        loop: The event loop.
        process: The process.
        sock: This side of its socket.
        threads: Threads that wait for its end.
        closed: Called at its end.
        gone: Called when its status is known, with it and `ending`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - from `spawn` alone
        self,
        loop: asyncio.AbstractEventLoop,
        process: subprocess.Popen[bytes],
        sock: socket.socket,
        threads: Executor,
        closed: Callable[[DeriveProcess], None],
        gone: Callable[[DeriveProcess], None],
    ) -> None:
        self.ready = Ready(version="", reads=(), writes=())
        self.jobs = 0
        self.ending: Ending | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._process = process
        self._socket = sock
        self._threads = threads
        self._closed = closed
        self._gone = gone
        self._killed = False
        self._received = bytearray()
        self._message: asyncio.Future[bytes] | None = None
        """The message that is waited for."""
        self._status: asyncio.Future[int | None] = loop.create_future()
        """Its exit status, as soon as it is gone; `None`: this side had to kill it."""
        loop.add_reader(sock, self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def greet(self) -> None:
        """
        Wait until it is ready.

        Raises:
            StartFailed: It is not, and was killed.
        """
        try:
            greeting = decode_greeting(await self._receive(START_TIMEOUT_S))
        except TimeoutError:
            self.end(Ending.TIMED_OUT)
            raise StartFailed(f"it was not ready within {START_TIMEOUT_S} seconds") from None
        except (EOFError, msgspec.DecodeError):
            self.end(Ending.CRASHED)
            raise StartFailed(f"it ended at once{_describe(await self.wait())}") from None
        except BaseException:
            self.end(Ending.ABANDONED)
            raise
        if isinstance(greeting, Ready):
            self.ready = greeting
            return
        self.end(Ending.CRASHED)
        raise StartFailed(greeting.detail, lasting=True)

    async def run(self, job: Job, descriptors: Sequence[int], timeout_s: float) -> Answer:
        """
        Have a job done. `descriptors`: those of the original and, for a picture, of the empty file.

        Raises:
            ProcessEnded: The process has ended without an answer.
        """
        self.jobs += 1
        began = False
        try:
            self._send(encode(job), descriptors)
            began = True
            return decode_answer(await self._receive(timeout_s))
        except TimeoutError:
            self.end(Ending.TIMED_OUT)
        except (EOFError, msgspec.DecodeError):
            self.end(Ending.CRASHED)
        except BaseException:
            self.end(Ending.ABANDONED)
            raise
        status = await self.wait()
        assert self.ending is not None
        raise ProcessEnded(self.ending, status, began=began)

    def end(self, ending: Ending) -> None:
        """Kill it, unless it has ended; the first reason counts."""
        if self.ending is None:
            self._killed = True
            self._process.kill()
            self._close(ending)

    async def wait(self) -> int | None:
        """Wait until it is gone after its end, and return its exit status; `None`: this side had to kill it."""
        return await asyncio.shield(self._status)

    async def _receive(self, timeout_s: float) -> bytes:
        if self.ending is not None:
            raise EOFError
        self._message = self._loop.create_future()
        try:
            return await asyncio.wait_for(self._message, timeout_s)
        finally:
            self._message = None

    def _send(self, frame: bytes, descriptors: Sequence[int]) -> None:
        if self.ending is not None:
            raise EOFError
        try:
            sent = socket.send_fds(self._socket, [frame], descriptors)
        except BrokenPipeError:
            self._close(Ending.CRASHED)  # its status tells whether it did
            raise EOFError from None
        # The socket is empty, and a frame is a fraction of what it holds: what does not fit now never will.
        if sent != len(frame):
            raise EOFError

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._close(Ending.CRASHED)
            return
        self._received += data
        end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES])
        if (
            self._message is None
            or self._message.done()
            or (len(self._received) >= LENGTH_BYTES and not self._fits(end))
        ):
            self.end(Ending.CRASHED)
        elif len(self._received) == end and end > LENGTH_BYTES:
            self._message.set_result(bytes(self._received[LENGTH_BYTES:]))
            self._received.clear()

    def _fits(self, end: int) -> bool:
        """Return whether one message that ends there has a legal length, and nothing is behind it."""
        return LENGTH_BYTES < end <= LENGTH_BYTES + MESSAGE_BYTES_MAX and len(self._received) <= end

    def _close(self, ending: Ending) -> None:
        """Close the socket, and wait for the end in a thread."""
        self.ending = ending
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self.idle_timer is not None:
            self.idle_timer.cancel()
        if self._message is not None and not self._message.done():
            self._message.set_exception(EOFError())
        collected = self._loop.run_in_executor(self._threads, _collect, self._process)
        collected.add_done_callback(self._note_status)
        self._closed(self)

    def _note_status(self, collected: asyncio.Future[int | None]) -> None:
        status = collected.result()
        if self.ending is Ending.CRASHED and not self._killed:
            self.ending = Ending.CRASHED if status is None else _ENDINGS.get(status, Ending.CRASHED)
        self._status.set_result(status)
        self._gone(self)


async def spawn(
    launch: Launch, closed: Callable[[DeriveProcess], None], gone: Callable[[DeriveProcess], None]
) -> DeriveProcess:
    """
    Start a process, which is not ready yet. Not to be cancelled.

    Raises:
        StartFailed: The system does not start it.
    """
    loop = asyncio.get_running_loop()
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise StartFailed(_text_of(error)) from None
    ours.setblocking(False)
    try:
        process = await loop.run_in_executor(launch.threads, _start, launch, theirs)
    except OSError as error:
        ours.close()
        raise StartFailed(_text_of(error)) from None
    finally:
        theirs.close()
    return DeriveProcess(loop, process, ours, launch.threads, closed, gone)


def _start(launch: Launch, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start the program. Blocks."""
    return subprocess.Popen(  # noqa: S603 - ourselves
        [*launch.command, str(theirs.fileno()), msgspec.json.encode(launch.limits).decode()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if launch.verbose else subprocess.DEVNULL,
        env=_make_environment(launch.environment),
        cwd="/",
        pass_fds=[theirs.fileno()],
        process_group=0,  # Ctrl-C in a terminal ends the server, which ends its processes when their jobs are done
    )


def _make_environment(given: Mapping[str, str]) -> dict[str, str]:
    # As workers do, it runs the code of this process.
    code = str(Path(__file__).parents[2])
    kept = {name: given[name] for name in _INHERITED if name in given}
    return {**kept, **_OWN, "PYTHONPATH": os.pathsep.join(filter(None, (code, given.get("PYTHONPATH"))))}


def _collect(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a process whose socket is closed, and return its status. Blocks."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(EXIT_TIMEOUT_S)
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(LAST_TIMEOUT_S)  # one that the kernel holds back is collected later, by `subprocess` itself
    return None


def _describe(status: int | None) -> str:
    if status is None:
        return ""
    return f", with exit status {status}" if status >= 0 else f", by signal {-status}"


def _text_of(error: OSError) -> str:
    return os.strerror(error.errno or 0)
