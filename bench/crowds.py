"""
Clients that wrk cannot play: one that looks at the clock, one that takes large bodies faster than they are sent, a
thousand at once, two thousand that hardly read.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.servers import CLIENT_CORE, free_port
from bench.wrk import InvalidRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.servers import Server

PIECE_BYTES = 65_536
DROPPED_BYTES_MAX = 1_048_576
DRAIN_PAUSE_S = 0.0002
"""A client that waits in the kernel is woken by each segment, at the server's cost."""
HEAD_BYTES_MAX = 4096


@dataclass
class _Drain:
    """A connection whose bodies go nowhere."""

    sock: socket.socket
    left: int = 0
    """Bytes of the answer that are still to come; 0: its head has not been seen."""
    size: int = 0
    """Of its body."""

    def read(self, room: bytearray) -> int:
        """
        Drop what is there; return the size of the body if that was all of it.

        Raises:
            InvalidRun: It is not 200, or does not say how long it is.
        """
        if not self.left:
            head, end, _ = self.sock.recv(HEAD_BYTES_MAX, socket.MSG_PEEK).partition(b"\r\n\r\n")
            if not end:
                return 0
            self.size = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or b"0")
            if not head.startswith(b"HTTP/1.1 200 ") or not self.size:
                raise InvalidRun(f"answered with {head[:40]!r}")
            self.left = len(head) + len(end) + self.size
        self.left -= self.sock.recv_into(room, min(self.left, len(room)), socket.MSG_TRUNC)
        return 0 if self.left else self.size


def drain(server: Server, target: str, seconds: float, connections: int = 64) -> float:
    """
    Ask for a large body again and again on so many connections; return the bytes a second that came.

    wrk reads eight kB at a time, with two system calls each, and is at its own end at 3 GB/s. This one has the kernel
    drop what has come instead of copying it (`MSG_TRUNC`, tcp(7)), so that the server is what is measured.

    Raises:
        InvalidRun: An answer was not 200, or a connection was closed.
    """
    os.sched_setaffinity(0, {CLIENT_CORE})
    request, room, received = _request(target), bytearray(DROPPED_BYTES_MAX), 0
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        drains = {}
        for _ in range(connections):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request)
            drains[sock.fileno()] = _Drain(sock)
            poll.register(sock, select.EPOLLIN)
        start = time.monotonic()
        while (spent_s := time.monotonic() - start) < seconds:
            for descriptor, event in poll.poll(1):
                if event & ~select.EPOLLIN:
                    raise InvalidRun("a connection was closed")
                one = drains[descriptor]
                size = one.read(room)
                if size:
                    received += size
                    one.sock.sendall(request)
            time.sleep(DRAIN_PAUSE_S)
        return received / spent_s


def first_bytes(server: Server, targets: Sequence[str]) -> list[float]:
    """Ask for one after the other on one connection; return the seconds to the first byte of each body."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    seconds = []
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        for target in targets:
            start = time.perf_counter()
            sock.sendall(_request(target))
            head = b""
            while b"\r\n\r\n" not in head or head.endswith(b"\r\n\r\n"):
                head += sock.recv(PIECE_BYTES)
            seconds.append(time.perf_counter() - start)
            head, _, body = head.partition(b"\r\n\r\n")
            left = int(head.lower().partition(b"content-length: ")[2].split()[0]) - len(body)
            while left:
                left -= len(sock.recv(min(left, PIECE_BYTES)))
    return seconds


@dataclass
class PacedOrigin:
    """An origin that sends `body` at so many bytes a second, in a thread of its own."""

    port: int
    requests: list[str]

    def asked(self, path: str) -> int:
        return self.requests.count(path)


@contextmanager
def paced_origin(body: bytes, bytes_per_s: int) -> Iterator[PacedOrigin]:
    origin = PacedOrigin(free_port(), [])
    piece = bytes_per_s // 100

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        origin.requests.append(head.split(b" ")[1].decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body))
        for start in range(0, len(body), piece):
            writer.write(body[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    async def serve(ready: threading.Event, stop: asyncio.Event) -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", origin.port, backlog=100):
            ready.set()
            await stop.wait()

    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(ready, stop)))
    thread.start()
    ready.wait()
    yield origin
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@dataclass(frozen=True)
class Crowd:
    """What a crowd saw: seconds to the first byte of each body, wrong bodies, and the server's greatest memory."""

    first_s: list[float]
    wrong: int
    rss_max: int


@dataclass
class _Client:
    """One of a crowd."""

    sock: socket.socket
    asked_at: float = 0.0
    first_s: float | None = None
    head: bytes = b""
    received: int = 0
    wrong: bool = False

    def read(self, body: bytes) -> None:
        """Take what is there."""
        piece = self.sock.recv(PIECE_BYTES)
        if self.first_s is None:
            self.head += piece
            head, end, piece = self.head.partition(b"\r\n\r\n")
            if end and not head.startswith(b"HTTP/1.1 200 "):
                self.wrong = True
            if piece:
                self.first_s = time.perf_counter() - self.asked_at
        elif not piece:
            self.wrong = True
        self.wrong |= not body.startswith(piece, self.received)
        self.received += len(piece)


def crowd(server: Server, target: str, number: int, body: bytes) -> Crowd:
    """
    Let so many clients ask at once for one image.

    No client reads on until all have their first bytes: the row measures the server, not how fast clients read.
    """
    os.sched_setaffinity(0, {CLIENT_CORE})
    _allow_sockets(number)
    request = _request(target)
    with ExitStack() as stack:
        clients = [
            _Client(stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))) for _ in range(number)
        ]
        time.sleep(1)  # until the server has accepted all of them
        poll = stack.enter_context(select.epoll())
        for client in clients:
            client.asked_at = time.perf_counter()
            client.sock.sendall(request)
            poll.register(client.sock, select.EPOLLIN)
        by_descriptor = {client.sock.fileno(): client for client in clients}
        _read(poll, by_descriptor, body, lambda client: client.first_s is not None)
        for client in clients:
            poll.register(client.sock, select.EPOLLIN)
        rss_max = _read(poll, by_descriptor, body, lambda client: client.received == len(body), server.rss)
        return Crowd([client.first_s or 0.0 for client in clients], sum(client.wrong for client in clients), rss_max)


def _read(
    poll: select.epoll,
    clients: dict[int, _Client],
    body: bytes,
    has_enough: Callable[[_Client], bool],
    look: Callable[[], int] = lambda: 0,
) -> int:
    """Let all read until they have enough; return the most that was seen by looking now and then."""
    left, most = len(clients), 0
    while left:
        most = max(most, look())
        end = time.monotonic() + 0.05
        while left and time.monotonic() < end:
            for descriptor, _ in poll.poll(0.05):
                client = clients[descriptor]
                client.read(body)
                if client.wrong or has_enough(client):
                    poll.unregister(descriptor)
                    left -= 1
    return most


def slow_readers(server: Server, target: str, number: int, seconds: float) -> int:
    """Let so many clients ask for one image and hardly read; return the server's greatest memory."""
    _allow_sockets(number)
    sockets = []
    rss_max = 0
    try:
        for _ in range(number):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(_request(target))
            sockets.append(sock)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for sock in sockets:
                with suppress(BlockingIOError):
                    sock.recv(4096, socket.MSG_DONTWAIT)
            rss_max = max(rss_max, server.rss())
            time.sleep(0.25)
    finally:
        for sock in sockets:
            sock.close()
    return rss_max


def _request(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _allow_sockets(number: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, number + 1000), hard))
