"""Several workers, seen from outside: who they are, which of them has a connection, and what they say to each other."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.program import START_TIMEOUT_S, environment
from tests.support.raw_http import split
from tests.support.waiting import block_until, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Self

    from tests.support.program import Program
    from tests.support.raw_http import Answer

CONNECTIONS_MAX: int = 200
"""So many are opened until one is the wanted worker's: with two workers, that is never reached."""


@dataclass
class Cluster:
    """A running `imgkeep serve` of several workers that many tests share: bound to no event loop."""

    process: subprocess.Popen[bytes]
    address: str = ""
    log: list[str] = field(default_factory=list)
    taps: dict[str, Tap] = field(default_factory=dict)
    """By worker."""

    def tap(self, worker: Worker) -> Tap:
        """Return what is said to a worker from now on."""
        tap = self.taps[worker.name]
        tap.clear()
        return tap

    def follow_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode())
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record["message"] == "listening":
                    self.address = record["address"]


@contextmanager
def clustered(folder: Path, **settings: str) -> Iterator[Cluster]:
    """Run two workers, each with a tap at its socket, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "imgkeep", "serve"],
        cwd=folder.parent,
        env=environment(folder, server__workers="2", **settings),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    cluster = Cluster(process)
    following = threading.Thread(target=cluster.follow_log)
    following.start()
    try:
        block_until(lambda: cluster.address or not following.is_alive(), within_s=START_TIMEOUT_S)
        assert cluster.address, f"imgkeep did not start: {''.join(cluster.log)}"
        with _tapping(cluster):
            yield cluster
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        following.join()
        assert process.stderr is not None
        process.stderr.close()


@dataclass(frozen=True)
class Worker:
    pid: int
    name: str
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"


def workers(program: Program | Cluster) -> dict[str, Worker]:
    """Return the workers by name; one that dies this very moment is left out."""
    parent = program.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split()
    found = {}
    for pid in map(int, children):
        with suppress(OSError, ValueError):
            arguments = Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")
            place = json.loads(arguments[arguments.index("--worker") + 1])
            found[place["name"]] = Worker(pid, place["name"], Path(place["folder"]))
    return found


def leader(program: Program | Cluster) -> Worker:
    """Return the worker that answers the API."""
    found = workers(program)
    folder = next(iter(found.values())).folder
    return found[str((folder / "leader").readlink())]


def others(program: Program | Cluster) -> list[Worker]:
    """Return the workers that pass requests to the API on."""
    return [worker for worker in workers(program).values() if worker != leader(program)]


def port_of(program: Program | Cluster) -> int:
    return int(program.address.rpartition(":")[2])


def connections_of(worker: Worker, port: int) -> set[int]:
    """Return the ports of the clients that are connected with a worker."""
    inodes = set()
    for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    return {
        int(row[2].rpartition(":")[2], 16)
        for row in rows
        if row[9] in inodes and int(row[1].rpartition(":")[2], 16) == port and row[3] == "01"
    }


def _is_accepted(program: Program | Cluster, own: int, port: int) -> bool:
    return any(own in connections_of(each, port) for each in workers(program).values())


@asynccontextmanager
async def line_to(
    program: Program | Cluster, worker: Worker
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect until the kernel has chosen `worker`."""
    port = port_of(program)
    refused: list[asyncio.StreamWriter] = []
    try:
        for _ in range(CONNECTIONS_MAX):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            refused.append(writer)
            own = writer.get_extra_info("sockname")[1]
            await until(partial(_is_accepted, program, own, port))
            if own in connections_of(worker, port):
                yield reader, writer
                return
        raise AssertionError("no connection was the worker's")
    finally:
        for writer in refused:
            writer.close()


@dataclass
class Line:
    """Talks with one of the workers, on one connection for as long as that stays open."""

    program: Program | Cluster
    worker: Worker
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_how: object) -> None:
        await self._stack.aclose()

    async def say(self, data: bytes) -> None:
        if self._ends is None:
            self._ends = await self._stack.enter_async_context(line_to(self.program, self.worker))
        self._ends[1].write(data)

    async def hear(self) -> Answer:
        """Return the next answer, which tells its length."""
        assert self._ends is not None
        answer = await hear(self._ends[0])
        if answer.headers.get("connection") == "close":
            self._ends = None
        return answer

    async def ask(self, data: bytes) -> Answer:
        await self.say(data)
        return await self.hear()


async def hear(reader: asyncio.StreamReader) -> Answer:
    """Read one answer that tells its length."""
    async with asyncio.timeout(20):
        answer = split(await reader.readuntil(b"\r\n\r\n"))
        answer.body = await reader.readexactly(int(answer.headers.get("content-length", "0")))
        return answer


@dataclass(frozen=True)
class Message:
    """A request or an answer as it went over the wire."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def field(self, name: bytes) -> bytes | None:
        return {key.lower(): value for key, value in self.fields}.get(name.lower())


def read_messages(data: bytes) -> list[Message]:
    """Split what one side has said, strictly; fails where that is not a row of whole messages."""
    found = []
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        assert mark, head
        start, *lines = head.split(b"\r\n")
        fields = [(line.partition(b": ")[0], line.partition(b": ")[2]) for line in lines]
        named = {name.lower(): value for name, value in fields}
        assert len(named) == len(fields), "a field comes twice"
        body = bytearray()
        if named.get(b"transfer-encoding") == b"chunked":
            assert b"content-length" not in named
            while size := int(re.match(rb"([0-9a-f]+)\r\n", data)[1], 16):  # type: ignore[index]
                data = data.partition(b"\r\n")[2]
                body += data[:size]
                assert data[size : size + 2] == b"\r\n"
                data = data[size + 2 :]
            assert data.startswith(b"0\r\n\r\n")
            data = data[5:]
        else:
            size = int(named.get(b"content-length", b"0"))
            assert len(data) >= size
            body, data = bytearray(data[:size]), data[size:]
        found.append(Message(start, fields, bytes(body)))
    return found


@dataclass
class Wire:
    """One connection between workers, from both sides."""

    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)
    is_over: bool = False


@dataclass
class Tap:
    """What goes over the socket of one worker."""

    place: Path
    wires: list[Wire] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire()
        self.wires.append(wire)
        there, back = await asyncio.open_unix_connection(self.place)
        with suppress(asyncio.CancelledError):  # at the end of the tests
            await asyncio.gather(_pump(reader, back, wire.asked), _pump(there, writer, wire.answered))
        wire.is_over = True

    def clear(self) -> None:
        """Forget what was said so far; connections that stay open are idle."""
        self.wires[:] = [wire for wire in self.wires if not wire.is_over]
        for wire in self.wires:
            wire.asked.clear()
            wire.answered.clear()

    def rows(self) -> list[list[Message]]:
        """Return the requests, connection by connection."""
        return [read_messages(bytes(wire.asked)) for wire in list(self.wires) if wire.asked]

    def requests(self) -> list[Message]:
        return [message for row in self.rows() for message in row]

    def secret(self) -> bytes:
        """Return what requests prove themselves by."""
        (found,) = {request.field(b"Imgkeep-Peer-Secret") for request in self.requests()}
        assert found
        return found


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
    try:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                record += data
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@contextmanager
def _tapping(cluster: Cluster) -> Iterator[None]:
    """Stand between the workers, on an event loop in a thread of its own: tests come and go, connections stay."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = []
    try:
        for worker in workers(cluster).values():
            hidden = worker.folder / f"{worker.name}.tapped"
            worker.socket.rename(hidden)
            tap = cluster.taps[worker.name] = Tap(hidden)
            starting = asyncio.start_unix_server(tap.serve, worker.socket)
            servers.append(asyncio.run_coroutine_threadsafe(starting, loop).result())
        yield
    finally:
        asyncio.run_coroutine_threadsafe(_end(servers), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(servers: Sequence[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # so that what was closed is
