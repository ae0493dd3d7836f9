"""Clients that wrk cannot play: one that looks at the clock, a thousand at once, two thousand that hardly read."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.servers import CLIENT_CORE, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.servers import Server

PIECE_BYTES = 65_536


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


def crowd(server: Server, target: str, number: int, body: bytes) -> Crowd:
    """Let so many clients ask at once for one image."""
    return asyncio.run(_crowd(server, target, number, hashlib.sha256(body).digest()))


async def _crowd(server: Server, target: str, number: int, digest: bytes) -> Crowd:
    _allow_sockets(number)
    go = asyncio.Event()
    first_s: list[float] = []
    wrong = 0

    async def client() -> None:
        nonlocal wrong
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await go.wait()
        start = time.perf_counter()
        writer.write(_request(target))
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length: ")[2].split()[0])
        seen = hashlib.sha256()
        piece = await reader.read(min(left, PIECE_BYTES))
        first_s.append(time.perf_counter() - start)
        while piece:
            seen.update(piece)
            left -= len(piece)
            piece = await reader.read(min(left, PIECE_BYTES)) if left else b""
        wrong += seen.digest() != digest
        writer.close()

    clients = [asyncio.create_task(client()) for _ in range(number)]
    await asyncio.sleep(1)
    go.set()
    rss_max = 0
    waiting = set(clients)
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=0.05)
        rss_max = max(rss_max, server.rss())
    return Crowd(first_s, wrong, rss_max)


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
