"""However requests are cut and run together, each gets its own response, in order."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import pytest

from imgkeep.web.http_server import HttpServer
from tests.support.concurrent_requests import connections_of
from tests.support.image_requests import HandlerCalls, cached_target
from tests.support.images import png_of
from tests.support.origins import gated_body
from tests.support.raw_http import connect, port_of, request, target_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin
    from tests.support.raw_http import RawConnection
    from tests.support.server import Imgkeep


IMAGE = png_of(20_000)
PIECES_MAX = 6


def exchanges(target: str) -> list[tuple[bytes, str, int, int | None]]:
    """Return requests, each with its method, status and size of body, where that is known."""
    hidden = request(target, close=False)
    return [
        (request(target, close=False), "GET", 200, len(IMAGE)),
        (request(target, close=False), "GET", 200, len(IMAGE)),
        (request(target, method="HEAD", close=False), "HEAD", 200, None),
        (request(target, "If-None-Match: *", close=False), "GET", 304, 0),
        (request(target, "Range: bytes=3-9", close=False), "GET", 206, 7),
        (request(target, "Range: bytes=99999-", close=False), "GET", 416, None),
        (request("/healthz", close=False), "GET", 200, None),
        (request("/nothing", close=False), "GET", 404, None),
        # What looks like a request is a body.
        (request(target, f"Content-Length: {len(hidden)}", close=False) + hidden, "GET", 200, len(IMAGE)),
        (request("/nothing", f"Content-Length: {len(hidden)}", method="POST", close=False) + hidden, "POST", 404, None),
        (
            request("/nothing", "Transfer-Encoding: chunked", close=False)
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden),
            "GET",
            404,
            None,
        ),
        (b"\r\n" + request("/healthz", close=False), "GET", 200, None),
    ]


async def send_cut(line: RawConnection, data: bytes, dice: Random) -> None:
    """Send `data` in pieces, some of which arrive apart and some together."""
    cuts = sorted(dice.sample(range(1, len(data)), min(PIECES_MAX, len(data) - 1)))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        line.writer.write(data[start:end])
        await line.writer.drain()
        for _ in range(dice.choice([0, 1, 4, 20])):
            await asyncio.sleep(0)


async def test_responses_match_requests_however_these_are_cut(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    for seed in range(24):
        with subtests.test(seed=seed):
            await exchange_cut(imgkeep, target, seed)


async def exchange_cut(imgkeep: Imgkeep, target: str, seed: int) -> None:
    """Send requests that are cut at random, and check the response to each."""
    dice = Random(seed)
    known = exchanges(target)
    # Many begin with requests of the fast path alone, so that it and aiohttp alternate on one connection.
    chosen = [known[dice.randrange(5)] for _ in range(seed % 6)] + [dice.choice(known) for _ in range(10)]
    async with connect(port_of(imgkeep)) as line:
        together = seed % 3 == 0
        run_together = b"".join(data for data, *_ in chosen)
        sending = asyncio.create_task(send_cut(line, run_together, dice)) if together else None
        for data, method, status, size in chosen:
            if sending is None:
                await send_cut(line, data, dice)
            answer = await line.answer(method=method)
            assert answer.status == status
            if size is not None:
                assert len(answer.body) == size
            if (status, method) == (200, "GET") and size:
                assert answer.body == IMAGE
        if sending is not None:
            await sending
        # And no byte is left over.
        line.writer.write(request("/healthz"))
        assert (await line.answer()).status == 200
        assert await line.is_closed()


async def test_all_requests_behind_a_slow_one_are_answered(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """Aiohttp queues fewer, then stops reading, and later asks its parser for the rest."""
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    gate = asyncio.Event()
    slow = png_of(40_000, seed=7)
    slow_target = target_of(origin.on("/slow.png", gated_body(slow, gate, ahead=1000)))
    number = 100
    async with connect(port_of(imgkeep)) as line:
        line.writer.write(request(slow_target, close=False))
        await line.reader.readuntil(b"\r\n\r\n")

        async def send() -> None:
            for n in range(number):
                line.writer.write(request("/healthz" if n % 3 else target, close=False))
                await line.writer.drain()
                for _ in range(10):
                    await asyncio.sleep(0)
                if n == number // 2:
                    gate.set()

        sending = asyncio.create_task(send())
        assert await line.reader.readexactly(len(slow)) == slow
        sizes = [len((await line.answer()).body) for _ in range(number)]
        await sending
    assert [size == len(IMAGE) for size in sizes] == [not n % 3 for n in range(number)]


async def test_handed_over_request_waits_for_the_response_of_a_handler(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """A worker that drains hands its connections over, busy or not (`HttpServer.disable_fast_path`)."""
    gate = asyncio.Event()
    slow = png_of(40_000, seed=7)
    slow_target = target_of(origin.on("/slow.png", gated_body(slow, gate, ahead=1000)))
    server = imgkeep.client.server.runner.server  # type: ignore[union-attr]
    assert isinstance(server, HttpServer)
    async with connect(port_of(imgkeep)) as line:
        line.writer.write(request(slow_target, close=False))
        await line.reader.readuntil(b"\r\n\r\n")
        line.writer.write(request("/healthz", close=False))
        (connection,) = connections_of(imgkeep)
        await until(lambda: b"/healthz" in connection._buffer)
        server.disable_fast_path()
        gate.set()
        assert await line.reader.readexactly(len(slow)) == slow
        assert (await line.answer()).body == b"ok\n"


TARGETS = [
    pytest.param("{target}#fragment", id="a fragment"),
    pytest.param("{target}&", id="an empty parameter"),
    pytest.param("http://imgkeep.example{target}", id="an absolute target"),
    pytest.param("//imgkeep.example{target}", id="two slashes"),
    pytest.param("/.{target}", id="a dot"),
    pytest.param("/%69mg?{query}", id="a needless escape"),
    pytest.param("{target}\xff", id="a byte that is no text"),
]


@pytest.mark.parametrize("form", TARGETS)
async def test_odd_target_always_gets_the_same_response(imgkeep: Imgkeep, origin: FakeOrigin, form: str) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    odd = form.format(target=target, query=target.partition("?")[2])
    statuses = []
    for _ in range(3):
        async with connect(port_of(imgkeep)) as line:
            line.writer.write(f"GET {odd} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
            answer = await line.answer()
            statuses.append((answer.status, answer.headers["content-type"]))
    assert len(set(statuses)) == 1


HEADS = [
    pytest.param(b"GET {t} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", id="close"),
    pytest.param(b"GET {t} HTTP/1.1\r\nHost: localhost\r\nProxy-Connection: close\r\n\r\n", id="Proxy-Connection"),
    pytest.param(b"GET {t} HTTP/1.0\r\n\r\n", id="HTTP/1.0"),
]


@pytest.mark.parametrize("head", HEADS)
async def test_connection_close_is_honoured_after_the_image(imgkeep: Imgkeep, origin: FakeOrigin, head: bytes) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    async with connect(port_of(imgkeep)) as line:
        assert (await line.ask(target)).body == IMAGE, "the fast path first"
        line.writer.write(head.replace(b"{t}", target.encode()))
        assert (await line.answer()).body == IMAGE
        assert await line.is_closed()


async def test_fast_path_resumes_after_any_whole_request_without_a_body(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    calls = HandlerCalls(imgkeep)
    async with connect(port_of(imgkeep)) as line:
        for other in ("/healthz", "/nothing", "/metrics", "/img?src=x"):
            await line.ask(other)
            assert (await line.ask(target)).body == IMAGE
    assert calls.number == 0
