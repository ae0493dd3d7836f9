"""
A gate on loopback before one server: what stands open, or does mischief to some or all requests, as it is told to.

Requests are read one by one and passed on byte for byte, each over a connection of its own, so that what one side does
between two requests is not the other's affair. Only the head of a response is changed, and only by `set_header` and
`strip_header`; only its body by `corrupt` and `cut_body`.

What is told counts for requests that arrive from then on. `hang` without a `match` and `refuse` are about the
network rather than about requests: they concern transfers that are under way, too. What hangs does so until its client
gives up, also after the gate was opened again.

Clients may ask more often than they are told to: aiohttp repeats any request once whose connection breaks off before
there is a response.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, assert_never

from tests.support.loopback import HOST, port_of, reserve
from tests.support.s3.misbehaving import (
    Answer,
    Corrupt,
    CutBody,
    Drip,
    Hang,
    Pass,
    Reset,
    Rewrite,
    SetHeader,
    Stall,
    s3_error,
)
from tests.support.s3.recording import (
    Head,
    Line,
    Unmeasured,
    end_of_body,
    framed,
    pieces,
    request_framing,
    response_framing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.s3.misbehaving import Match, Mischief


@dataclass
class Seen:
    """
    A request that arrived.

    Attributes:
        path: With its query, as it is on the wire.
        headers: By name in lower case.
        status: What was answered, by the server or in its stead; `None` while or if nothing was.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    status: int | None = None


class _HangsError(Exception):
    """Leave the connection hanging."""


class _BreaksError(Exception):
    """Break the connection."""


@dataclass
class Gate:
    """
    Stands before the server at `host` and `port`; clients go to `endpoint`.

    Attributes:
        seen: Every request so far, in the order of arrival.
        connections: How many connections were accepted.
    """

    host: str
    port: int
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    _mischief: Mischief = field(default_factory=Pass)
    _match: Match | None = None
    _times_left: int | None = None
    _holder: socket.socket = field(default_factory=reserve)
    _server: asyncio.Server | None = None
    _full: list[socket.socket] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _arrival: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self) -> None:
        await self.open()

    async def stop(self) -> None:
        """Stop listening, break all connections and release the port."""
        await self.refuse()
        self._holder.close()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{port_of(self._holder)}"

    def count(self, method: str, path_part: str = "") -> int:
        """Return how many requests of a method arrived whose path has this part."""
        return sum(seen.method == method and path_part in seen.path for seen in self.seen)

    async def until_seen(self, method: str, path_part: str = "", *, times: int = 1) -> None:
        """Wait until so many such requests have arrived."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: self.count(method, path_part) >= times)

    # --- faults. `match` chooses the requests, `times` is the number of these that the fault applies to.

    async def open(self) -> None:
        """Forward everything."""
        await self.do(Pass())

    async def ignore(self) -> None:
        """Break the open connections, and let new ones hang while they connect: the queue of the port is full."""
        await self.refuse()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port_of(self._holder)))
        listener.listen(0)
        self._full = [listener]
        for _ in range(2):  # Linux accepts one more than the length of the queue
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex((HOST, port_of(self._holder)))
            self._full.append(caller)

    async def refuse(self) -> None:
        """Refuse connections and break the open ones."""
        for held in self._full:
            held.close()
        self._full = []
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def hang(self, *, match: Match | None = None, times: int | None = None) -> None:
        """Read and never answer; an `Expect: 100-continue` is not answered either."""
        await self.do(Hang(), match=match, times=times)

    async def reset(self, *, match: Match | None = None, times: int | None = None) -> None:
        """Break off as soon as the head of a request has arrived; the server sees nothing of it."""
        await self.do(Reset(None), match=match, times=times)

    async def reset_mid_body(self, after_bytes: int, *, match: Match | None = None, times: int | None = None) -> None:
        """Break off, on both sides, after so many bytes of a request's body. Requests with fewer pass."""
        await self.do(Reset(after_bytes), match=match, times=times)

    async def slow_down(self, *, match: Match | None = None, times: int | None = None) -> None:
        """Answer as S3 does to too many requests."""
        await self.do(s3_error(503, "SlowDown"), match=match, times=times)

    async def answer(
        self,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        match: Match | None = None,
        times: int | None = None,
    ) -> None:
        """Answer instead of the server, once a request was read whole; add `Content-Length` unless given."""
        await self.do(Answer(status, headers or {}, body), match=match, times=times)

    async def cut_body(
        self, after_bytes: int, *, reset: bool = False, match: Match | None = None, times: int | None = None
    ) -> None:
        """Break off after so many bytes of a response's body, with FIN or RST. Shorter ones pass."""
        await self.do(CutBody(after_bytes, reset), match=match, times=times)

    async def stall(self, after_bytes: int, *, match: Match | None = None) -> None:
        """Send so many bytes of a response's body, and no more. Shorter ones pass."""
        await self.do(Stall(after_bytes), match=match)

    async def drip(self, interval_s: float, *, status: int | None = None) -> None:
        """Answer with a head that never ends, byte by byte, or with a body without end of a response with a status."""
        await self.do(Drip(interval_s, status))

    async def corrupt(self, at: int = 0, *, match: Match | None = None, times: int | None = None) -> None:
        """Flip the byte `at` this offset of a response's body."""
        await self.do(Corrupt(at), match=match, times=times)

    async def strip_header(self, name: str, *, match: Match | None = None, times: int | None = None) -> None:
        """Remove a field from responses."""
        await self.do(SetHeader(name, None), match=match, times=times)

    async def set_header(self, name: str, value: str, *, match: Match | None = None, times: int | None = None) -> None:
        """Set a field of responses."""
        await self.do(SetHeader(name, value), match=match, times=times)

    async def do(self, mischief: Mischief, *, match: Match | None = None, times: int | None = None) -> None:
        """Inject one kind of fault from now on, and listen again after a refusal."""
        self._mischief, self._match, self._times_left = mischief, match, times
        if self._server is None:
            await self.refuse()
            self._server = await asyncio.start_server(self._serve, HOST, port_of(self._holder))

    # --- forwarding

    def _decide(self, method: str, path: str) -> Mischief:
        if self._times_left == 0 or (self._match is not None and not self._match(method, path)):
            return Pass()
        if self._times_left is not None:
            self._times_left -= 1
        return self._mischief

    def _flow(self) -> None:
        """Leave a transfer under way hanging, where everything hangs."""
        if isinstance(self._mischief, Hang) and self._match is None and self._times_left is None:
            raise _HangsError

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Line(reader, writer)
        if self._server is None:  # it was closed between accepting and this
            client.reset()
            return
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(client)
        except (_BreaksError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            client.reset()
        finally:
            self._tasks.discard(task)
            client.close()

    async def _talk(self, client: Line) -> None:
        try:
            while await self._exchange(client):
                pass
            await client.finish()
        except _HangsError:
            await client.swallow()

    async def _exchange(self, client: Line) -> bool:
        """Handle one request; return whether the connection goes on."""
        request = await Head.read(client.reader)
        method, path, _ = request.line.split(" ")
        mischief = self._decide(method, path)
        seen = Seen(method, path, {name.lower(): value for name, value in request.fields})
        self.seen.append(seen)
        async with self._arrival:
            self._arrival.notify_all()
        match mischief:
            case Hang():
                raise _HangsError
            case Reset(None):
                raise _BreaksError
            case Answer() as answer:
                await self._answer(client, request, seen, answer)
                return not request.last
            case Drip() as drip:
                await self._drip(client, drip)
                return False
            case Pass() | Reset() | CutBody() | Stall() | Corrupt() | SetHeader() | Rewrite():
                return await self._pass_on(client, request, seen, mischief)
            case unknown:
                assert_never(unknown)

    async def _answer(self, client: Line, request: Head, seen: Seen, answer: Answer) -> None:
        if "100-continue" in request.get("Expect").lower():
            await client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for _ in pieces(client.reader, request_framing(request)):
            self._flow()
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        head = Head(f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", tuple(headers.items()))
        seen.status = answer.status
        await client.send(head.encode() + (b"" if seen.method == "HEAD" else answer.body))

    async def _drip(self, client: Line, drip: Drip) -> None:
        if drip.status is not None:
            await client.send(f"HTTP/1.1 {drip.status} OK\r\nConnection: close\r\n\r\n".encode())
        else:
            await client.send(b"HTTP/1.1 200 OK\r\nX-Padding: ")
        while True:
            await client.send(b"x")
            await asyncio.sleep(drip.interval_s)

    async def _pass_on(self, client: Line, request: Head, seen: Seen, mischief: Mischief) -> bool:
        server = await Line.connect(self.host, self.port)
        try:
            there = asyncio.create_task(self._pass_request(client, server, request, mischief))
            back = asyncio.create_task(self._pass_response(client, server, seen, mischief))
            again = await _both(there, back)
        except _HangsError:
            await client.swallow()  # the server is left hanging with it
            raise
        except BaseException:
            server.reset()
            raise
        finally:
            server.close()
        return again

    async def _pass_request(self, client: Line, server: Line, request: Head, mischief: Mischief) -> bool:
        await server.send(request.encode())
        framing = request_framing(request)
        at = 0
        async for piece in pieces(client.reader, framing):
            self._flow()
            if (
                isinstance(mischief, Reset)
                and mischief.after_bytes is not None
                and at + len(piece) >= mischief.after_bytes
            ):
                await server.send(framed(piece[: mischief.after_bytes - at], framing))
                raise _BreaksError
            at += len(piece)
            # A server that has answered need not read on: its response, or a missing one, decides.
            with suppress(ConnectionError):
                await server.send(framed(piece, framing))
        with suppress(ConnectionError):
            await server.send(end_of_body(framing))
        return True

    async def _pass_response(self, client: Line, server: Line, seen: Seen, mischief: Mischief) -> bool:
        while (head := await Head.read(server.reader)).status < HTTPStatus.OK:
            self._flow()
            await client.send(head.encode())
        told = _told(head, mischief)
        framing, told_framing = response_framing(head, seen.method), response_framing(told, seen.method)
        self._flow()
        seen.status = head.status
        await client.send(told.encode())
        at = 0
        async for piece in pieces(server.reader, framing):
            self._flow()
            match mischief:
                case CutBody(after_bytes, reset) if at + len(piece) >= after_bytes:
                    await client.send(framed(piece[: after_bytes - at], told_framing))
                    if reset:
                        raise _BreaksError
                    return False
                case Stall(after_bytes) if at + len(piece) >= after_bytes:
                    await client.send(framed(piece[: after_bytes - at], told_framing))
                    raise _HangsError
                case Corrupt(place) if at <= place < at + len(piece):
                    await client.send(framed(_flipped(piece, place - at), told_framing))
                case Rewrite():
                    await client.send(framed(mischief.rewrite(piece), told_framing))
                case _:
                    await client.send(framed(piece, told_framing))
            at += len(piece)
        await client.send(end_of_body(told_framing))
        # A client that expects another length has to see the end of the body.
        return framing == told_framing and framing is not Unmeasured.CLOSE and not head.last


async def _both(there: asyncio.Task[bool], back: asyncio.Task[bool]) -> bool:
    """Wait for both directions, or for the first that fails or ends the connection."""
    waiting = {there, back}
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not all(task.result() for task in done):
                return False
        return True
    finally:
        for task in (there, back):
            task.cancel()
        await asyncio.gather(there, back, return_exceptions=True)


def _told(head: Head, mischief: Mischief) -> Head:
    match mischief:
        case SetHeader(name, None):
            return head.without(name)
        case SetHeader(name, str(value)):
            return head.having(name, value)
        case _:
            return head


def _flipped(piece: bytes, place: int) -> bytes:
    return piece[:place] + bytes([piece[place] ^ 0xFF]) + piece[place + 1 :]
