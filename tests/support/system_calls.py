"""System calls of a running program, counted by strace, and requests for it to answer meanwhile."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.program import cannot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.program import Program

NUMBER = 500
SLACK = NUMBER // 2
"""Calls of other work meanwhile (health, timers, threads that end). One more call a request would be twice as many."""
# `futex` is not among what is limited: idle threads take the interpreter's lock as often as the machine is slow.
QUICK = {"futex", "read", "write", "writev", "sendmsg", "sendto", "recvfrom", "epoll_pwait", "epoll_wait", "getpid"}


@asynccontextmanager
async def counting(program: Program, into: dict[str, int]) -> AsyncIterator[None]:
    """Count the system calls of a running program, by name."""
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-c", "-p", str(program.process.pid)), stderr=asyncio.subprocess.PIPE
    )
    assert tracer.stderr is not None
    line = (await tracer.stderr.readline()).decode()
    if "attached" not in line:
        cannot(f"strace may not attach: {line}")
    yield
    tracer.send_signal(signal.SIGINT)
    summary = (await tracer.stderr.read()).decode()
    await tracer.wait()
    for line in summary.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[-1] != "total" and re.fullmatch(r"[0-9.]+", fields[0]):
            into[fields[-1]] = int(fields[3])


async def ask_often(program: Program, data: bytes) -> None:
    """Send one request again and again, each after the answer to the one before."""
    host, _, port = program.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(NUMBER):
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: ([0-9]+)", head)
        if head.startswith(b"HTTP/1.1 200") and size is not None:
            await reader.readexactly(int(size[1]))
    writer.close()
