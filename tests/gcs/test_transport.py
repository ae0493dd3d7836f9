"""The requests of Google's library against servers that drip, flood or redirect, and what goes to them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from imgkeep.storage.gcs.credential_requests import ANSWER_BYTES_MAX, Transport, Unanswered
from tests.support.loopback import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable
    from pathlib import Path

    from google.auth.transport import Response

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


class Serving:
    """A server that sends the pieces of one answer to each request; `seen` has the heads of the requests."""

    def __init__(self, answer: Callable[[], AsyncIterable[bytes]]) -> None:
        self.seen: list[bytes] = []
        self.url = ""
        self._answer = answer
        self._serving: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[Serving]:
        async with await asyncio.start_server(self._serve, HOST, 0) as server:
            self.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}/token"
            yield self
        await asyncio.gather(*self._serving)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.create_task(self._answer_one(reader, writer)))

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            self.seen.append(await reader.readuntil(b"\r\n\r\n"))
            async for piece in self._answer():
                writer.write(piece)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def drip_head() -> AsyncGenerator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X: y\r\n"
        await asyncio.sleep(0.05)


async def drip_body() -> AsyncGenerator[bytes]:
    yield HEAD
    while True:
        yield b" "
        await asyncio.sleep(0.05)


async def flood() -> AsyncGenerator[bytes]:
    yield HEAD
    while True:
        yield bytes(65_536)


async def redirect() -> AsyncGenerator[bytes]:
    yield b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"


async def ask(server: Serving, *, timeout_s: float = 5) -> Response:
    transport = Transport(timeout_s)
    return await asyncio.to_thread(transport, server.url, "POST", b"secret")


@pytest.mark.parametrize("answer", [drip_head, drip_body])
async def test_server_that_drips_holds_no_thread(answer: Callable[[], AsyncIterable[bytes]]) -> None:
    async with asyncio.timeout(5), Serving(answer).listening() as server:
        with pytest.raises(Unanswered, match="no answer in time"):
            await ask(server, timeout_s=0.3)


async def test_endless_answer_is_cut() -> None:
    async with Serving(flood).listening() as server:
        assert len((await ask(server)).data) == ANSWER_BYTES_MAX


async def test_secret_follows_no_redirect_and_netrc_adds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with Serving(redirect).listening() as server:
        assert (await ask(server)).status == 302
    (head,) = server.seen
    assert b"authorization" not in head.lower()


async def test_work_whose_time_is_over_sends_nothing() -> None:
    async with Serving(redirect).listening() as server:
        with pytest.raises(Unanswered, match="no answer in time"):
            await ask(server, timeout_s=0)
    assert server.seen == []
