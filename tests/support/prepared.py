"""
imgkeep as a process that has its imports behind it.

`python -m imgkeep` imports for 0.7 s of CPU before it does anything, and the tests start it a hundred times. So one
process for each process of the tests (`main` here) imports what a server needs, and forks for every start. The child
gets its own environment, folder, standard streams and session, and then runs the module as `python -m` does, up to the
end of an interpreter of its own. What tests the start itself, runs with limits, or under another program, is started by
exec (`tests/support/program.py`).

The parent of such a process is the one that forked it, which sends its exit status to the tests.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
REQUEST_BYTES_MAX = 1_048_576
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
STATUS = struct.Struct("=q")


class PreparedProcess:
    """
    A running process. Has what the tests use of `asyncio.subprocess.Process`.

    Attributes:
        stdin, stdout, stderr: Streams; `None`: that of the tests, or nothing.
    """

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._returncode: int | None = None
        self._status = status
        self._ending: asyncio.Task[None] | None = None

    @property
    def returncode(self) -> int | None:
        return self._returncode

    async def wait(self) -> int:
        """Wait for the end, as several tasks may; return the exit status, negative for a signal."""
        if self._returncode is None:
            if self._ending is None:
                self._ending = asyncio.create_task(self._read_status())
            await asyncio.shield(self._ending)
        assert self._returncode is not None
        return self._returncode

    async def communicate(self, data: bytes | None = None) -> tuple[bytes, bytes]:
        """Write to standard input, and read the others to their ends."""
        if self.stdin is not None:
            with suppress(BrokenPipeError, ConnectionResetError):
                self.stdin.write(data or b"")
                await self.stdin.drain()
            self.stdin.close()
        out, err = await asyncio.gather(_read(self.stdout), _read(self.stderr))
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self._returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def _read_status(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._status, STATUS.size)
        self._status.close()
        (self._returncode,) = STATUS.unpack(data) if data else (-signal.SIGKILL,)


async def start_prepared(
    arguments: Sequence[str],
    *,
    folder: Path,
    variables: Mapping[str, str],
    has_stdin: bool = False,
    has_stdout: bool = False,
    new_session: bool = False,
) -> PreparedProcess:
    """Start `python -m imgkeep`; its standard error, and the other streams where they are asked for, are pipes."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    read_error, write_error = os.pipe()
    read_input, write_input = os.pipe() if has_stdin else (os.open(os.devnull, os.O_RDONLY), -1)
    read_output, write_output = os.pipe() if has_stdout else (-1, os.dup(1))
    order = {
        "arguments": [*arguments],
        "folder": str(folder),
        "variables": dict(variables),
        "new_session": new_session,
    }
    descriptors = [theirs.fileno(), read_input, write_output, write_error]
    pid = await asyncio.to_thread(_forker().fork, json.dumps(order).encode(), descriptors, ours)
    theirs.close()
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    ours.setblocking(False)
    process = PreparedProcess(pid, ours)
    process.stderr = await _open_reader(loop, read_error)
    if has_stdout:
        process.stdout = await _open_reader(loop, read_output)
    if has_stdin:
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(write_input, "wb", 0)
        )
        process.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
    return process


async def _open_reader(loop: asyncio.AbstractEventLoop, descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0))
    return reader


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    return b"" if stream is None else await stream.read()


class _Forker:
    """The process that forks, as the tests see it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = os.environ  # noqa: TID251 - to be handed on
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.support.prepared", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env={**given, "PYTHONPATH": f"{ROOT / 'proxy'}:{ROOT}"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(self, order: bytes, descriptors: Sequence[int], status: socket.socket) -> int:
        """Have a process forked; return its id. Blocks for as long as that takes."""
        socket.send_fds(self._socket, [order], descriptors)
        (pid,) = STATUS.unpack(status.recv(STATUS.size))
        return int(pid)


_forkers: list[_Forker] = []


def _forker() -> _Forker:
    if not _forkers:
        _forkers.append(_Forker())
    return _forkers[0]


# --- the process that forks


class _Start(BaseException):
    """The way from the loop of the process that forks to the module, in a child."""


def main(descriptor: int) -> None:
    """Fork for each order, and report the ends of the children, until the tests end."""
    import imgkeep.bootstrap.server  # noqa: PLC0415 - not in the process of the tests
    import imgkeep.cli.serve  # noqa: F401, PLC0415

    with suppress(ImportError):
        import uvloop  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    orders = socket.socket(fileno=descriptor)
    wake_up, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([orders.fileno(), wake_up], [], [])
        if wake_up in ready:
            os.read(wake_up, 4096)
            _report_ends(statuses)
        if orders.fileno() in ready:
            data, descriptors, _, _ = socket.recv_fds(orders, REQUEST_BYTES_MAX, 4)
            if not data:
                break
            pid = os.fork()
            if pid == 0:
                for inherited in (orders, *statuses.values()):
                    inherited.close()
                _become(json.loads(data), descriptors)
            status = socket.socket(fileno=descriptors[0])
            status.send(STATUS.pack(pid))
            statuses[pid] = status
            for each in descriptors[1:]:
                os.close(each)
    for pid in statuses:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _report_ends(statuses: dict[int, socket.socket]) -> None:
    while statuses:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with suppress(OSError), statuses.pop(pid) as status:
            status.send(STATUS.pack(os.waitstatus_to_exitcode(code)))


def _become(order: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Make this child what the order says."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where Yama guards processes (ptrace_scope 1), one that is no child may be traced only if it says so itself.
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))
    if order["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(descriptors[1:]):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    os.chdir(order["folder"])
    os.environ.clear()  # noqa: TID251 - those of the program
    os.environ.update(order["variables"])  # noqa: TID251
    time.tzset()
    sys.argv = [str(ROOT / "proxy" / "imgkeep" / "__main__.py"), *order["arguments"]]
    sys.path[:] = [path for path in sys.path if path != str(ROOT)]
    sys.stdin = TextIOWrapper(os.fdopen(0, "rb"), "utf-8")
    sys.stdout = TextIOWrapper(os.fdopen(1, "wb"), "utf-8", line_buffering=os.isatty(1))
    sys.stderr = TextIOWrapper(os.fdopen(2, "wb"), "utf-8", "backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    raise _Start


if __name__ == "__main__":
    is_child = False
    try:
        main(int(sys.argv[1]))
    except _Start:
        is_child = True
    if is_child:
        runpy.run_module("imgkeep", run_name="__main__", alter_sys=True)
