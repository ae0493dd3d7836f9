"""Origins that send anything but an image, for ever or at once: each is bounded by what it can make us do."""

from __future__ import annotations

import asyncio
import gzip
import sys
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]  # it has no annotations
import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.core.errors import OriginError
from imgkeep.images.negative_cache import TOO_MANY_REQUESTS_S, failure_ttl_s
from imgkeep.origin.bounded_connection import (
    BODY_STEP_BYTES,
    FRAMING_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEAD_STEP_BYTES,
    INTERIM_ANSWERS_MAX,
    OriginConnection,
)
from imgkeep.origin.content_encoding import WindowSlots
from tests.support.images import make_image, png_of
from tests.support.network import Timer, counted, look, nothing_kept
from tests.support.waiting import until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = 65_536
SENT_MAX = 64 * PIECE
"""So much an origin offers of what has no end; what the kernel buffers is a part of it."""


class Endless:
    """An origin that begins properly and then repeats itself, as fast as it is read; it counts what it sent."""

    def __init__(self, start: bytes, again: bytes) -> None:
        self.start = start
        self.again = again * max(1, PIECE // len(again))
        self.sent = 0
        self.ended = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        try:
            await exchange.send(self.start)
            while True:
                await exchange.send(self.again)
                self.sent += len(self.again)
        finally:
            self.ended.set()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many bytes each step gives to aiohttp's parser, which then looks at all of them before it returns."""
    from aiohttp.client_proto import ResponseHandler  # noqa: PLC0415

    steps: list[int] = []
    take = ResponseHandler.data_received

    def counted_take(self: ResponseHandler, data: bytes) -> None:
        if isinstance(self, OriginConnection) and data:
            steps.append(len(data))
        take(self, data)

    monkeypatch.setattr(ResponseHandler, "data_received", counted_take)
    return steps


async def ends(imgkeep: Imgkeep, origin: FakeOrigin, script: Endless, code: str = "origin_error") -> Any:
    """Have the origin fetched from; `/healthz` answers meanwhile, and nothing is stored."""
    asking = asyncio.create_task(look(imgkeep, origin.on("/endless.png", script)))
    while not asking.done():
        assert (await imgkeep.client.get("/healthz")).status == 200
    seen = await asking
    assert seen.broken or seen.code == code
    assert await counted(imgkeep, f'imgkeep_fills_total{{outcome="{code}"}}') == 1
    await nothing_kept(imgkeep)
    await script.ended.wait()
    assert origin.asked("/endless.png") == 1, "another attempt would be the same"
    return seen


INTERIMS = {
    "early hints": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "as short as it can be": b"HTTP/1.1 199 \r\n\r\n",
    "processing with fields": b"HTTP/1.1 102 Processing\r\nLink: </a.css>; rel=preload\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 103 x\n\n",
}


@pytest.mark.parametrize("interim", INTERIMS.values(), ids=INTERIMS.keys())
async def test_interim_answers_are_cut_after_ten(
    start: Start, origin: FakeOrigin, parsed: list[int], interim: bytes
) -> None:
    imgkeep = await start(fetch={"retries_max": 2})
    script = Endless(b"", interim)
    seen = await ends(imgkeep, origin, script)
    assert (seen.status, seen.code) == (502, "origin_error")
    assert sum(parsed) <= HEAD_STEP_BYTES + INTERIM_ANSWERS_MAX * len(interim)
    assert script.sent <= SENT_MAX


@pytest.mark.parametrize("number", [0, 1, INTERIM_ANSWERS_MAX, INTERIM_ANSWERS_MAX + 1])
async def test_ten_interim_answers_are_skipped(start: Start, origin: FakeOrigin, number: int) -> None:
    imgkeep = await start()

    async def script(exchange: Exchange) -> None:
        await exchange.send(INTERIMS["early hints"] * number)
        await exchange.answer(make_image())

    assert (await look(imgkeep, origin.on("/a.png", script))).status == (200 if number <= INTERIM_ANSWERS_MAX else 502)


async def test_interim_answers_of_many_origins_delay_no_hit(
    start: Start, origin: FakeOrigin, parsed: list[int]
) -> None:
    imgkeep = await start()
    url = origin.gives("/a.png", make_image())
    assert (await look(imgkeep, url)).status == 200
    scripts = [Endless(b"", INTERIMS["as short as it can be"]) for _ in range(8)]
    asking = [asyncio.create_task(look(imgkeep, origin.on(f"/{n}.png", script))) for n, script in enumerate(scripts)]
    assert (await look(imgkeep, url)).status == 200
    assert {seen.status for seen in await asyncio.gather(*asking)} == {502}
    assert sum(parsed) <= 8 * (HEAD_STEP_BYTES + 1000) + 2 * PIECE


HEADS = {
    "fields": (OK, b"X-A: b\r\n"),
    "one field": (OK + b"X-A: ", b"b"),
    "empty lines before it": (b"", b"\r\n"),
    "a reason": (b"HTTP/1.1 200 ", b"x"),
}


@pytest.mark.parametrize(("begins", "again"), HEADS.values(), ids=HEADS.keys())
async def test_endless_head_is_cut(
    start: Start, origin: FakeOrigin, parsed: list[int], begins: bytes, again: bytes
) -> None:
    imgkeep = await start(fetch={"retries_max": 0})
    script = Endless(begins, again)
    await ends(imgkeep, origin, script)
    # What one read of the socket brings beyond it is parsed as well.
    assert sum(parsed) <= HEAD_BYTES_MAX + 4 * PIECE
    assert max(parsed) <= HEAD_STEP_BYTES


BODIES = {
    "extension of one chunk": (CHUNKED + b"5;", b"x"),
    "extensions": (CHUNKED, b"1;" + b"x" * 1000 + b"\r\nA\r\n"),
    "chunks of one byte": (CHUNKED, b"1\r\nA\r\n"),
    "zeros before a size": (CHUNKED, b"0"),
    "trailers": (CHUNKED + b"0\r\n", b"X-A: b\r\n"),
    "one trailer": (CHUNKED + b"0\r\nX-A: ", b"b"),
}


@pytest.mark.parametrize(("begins", "again"), BODIES.values(), ids=BODIES.keys())
async def test_endless_framing_is_cut(
    start: Start, origin: FakeOrigin, parsed: list[int], begins: bytes, again: bytes
) -> None:
    imgkeep = await start(fetch={"retries_max": 0})
    # An image so far, so that what is cut is the framing and not the judgement.
    image = png_of(3000)[:2900]
    begins = begins.replace(CHUNKED, CHUNKED + b"%x\r\n%b\r\n" % (len(image), image), 1)
    script = Endless(begins, again)
    await ends(imgkeep, origin, script)
    assert sum(parsed) <= FRAMING_BYTES_MAX * 2 + 8 * PIECE
    assert max(parsed) <= BODY_STEP_BYTES


async def test_image_in_honest_chunks_is_stored(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    body = png_of(3_000_000)

    async def script(exchange: Exchange) -> None:
        await exchange.send(CHUNKED)
        for at in range(0, len(body), 500):
            piece = body[at : at + 500]
            exchange.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if at % 50_000 == 0:
                await exchange.writer.drain()
        await exchange.send(b"0\r\nX-Trailer: x\r\n\r\n")

    for number in range(2):
        seen = await look(imgkeep, origin.on(f"/{number}.png", script))
        assert (seen.status, seen.body) == (200, body)
    assert origin.connections == 1, "and the connection is used again"


async def test_chunked_image_for_a_slow_disk_comes_whole(start: Start, origin: FakeOrigin) -> None:
    """What is held back while nothing can be taken comes in its order."""
    imgkeep = await start()
    body = png_of(2_000_000)
    size = 150_000

    async def script(exchange: Exchange) -> None:
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        await exchange.send(CHUNKED + data + b"0\r\n\r\n")

    assert (await look(imgkeep, origin.on("/a.png", script))).body == body


# --- bytes that belong to no answer

SPLIT = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(make_image(seed=66)), make_image(seed=66))


def framed(body: bytes, form: str) -> bytes:
    if form == "chunked":
        return CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("form", ["chunked", "length"])
@pytest.mark.parametrize("when", ["with it", "an iteration later", "as it is idle"])
async def test_unrequested_answer_reaches_no_other_client(
    start: Start, origin: FakeOrigin, form: str, when: str
) -> None:
    imgkeep = await start()
    idle = asyncio.Event()

    async def first(exchange: Exchange) -> None:
        answer = framed(make_image(seed=1), form)
        if when == "with it":
            await exchange.send(answer + SPLIT)
        else:
            await exchange.send(answer)
            if when == "as it is idle":
                await idle.wait()
            else:
                await asyncio.sleep(0)
            await exchange.send(SPLIT)
        await exchange.gone()

    seen = await look(imgkeep, origin.on("/1.png", first))
    assert (seen.status, seen.body) == (200, make_image(seed=1))
    idle.set()
    if when == "as it is idle":
        reader = origin.seen[0].reader
        assert reader is not None
        await until(reader.at_eof)
    for seed in (2, 3):
        seen = await look(imgkeep, origin.gives(f"/{seed}.png", make_image(seed=seed)))
        assert (seen.status, seen.body) == (200, make_image(seed=seed))
    assert origin.connections == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "404 Not Found", "302 Found", "200 OK"])
async def test_answers_behind_an_empty_one_are_not_parsed(
    start: Start, origin: FakeOrigin, parsed: list[int], status: str
) -> None:
    imgkeep = await start()
    script = Endless(
        f"HTTP/1.1 {status}\r\nLocation: /b.png\r\nContent-Length: 0\r\n\r\n".encode(), b"HTTP/1.1 204 \r\n\r\n"
    )
    origin.gives("/b.png", b"no image", status="404 Not Found")
    seen = await look(imgkeep, origin.on("/a.png", script))
    assert seen.status in {404, 422, 502}
    await script.ended.wait()
    assert sum(parsed) <= 2 * HEAD_STEP_BYTES


async def test_bytes_before_a_request_end_the_connection(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    spoken: list[asyncio.Task[None]] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        spoken.append(task)
        writer.write(SPLIT)
        with suppress(ConnectionError):
            await reader.read(1)  # until imgkeep sends a request, or closes
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    seen = await look(imgkeep, f"http://127.0.0.1:{port}/a.png")
    assert seen.status == 502 or seen.body == make_image(seed=66)  # it may have come after we asked
    server.close()
    seen = await look(imgkeep, origin.gives("/b.png", make_image()))
    assert seen.body == make_image()
    await asyncio.gather(*spoken)


async def test_switch_of_protocols_buffers_nothing(start: Start, origin: FakeOrigin, parsed: list[int]) -> None:
    imgkeep = await start()
    begins = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    script = Endless(begins, b"x" * PIECE)
    await ends(imgkeep, origin, script)
    assert sum(parsed) <= 2 * HEAD_STEP_BYTES


# --- bodies


async def test_body_of_a_redirect_is_not_read(start: Start, origin: FakeOrigin, parsed: list[int]) -> None:
    imgkeep = await start()
    there = origin.gives("/there.png", make_image())
    head = f"HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 1000000000\r\n\r\n"
    script = Endless(head.encode(), b"x" * PIECE)
    assert (await look(imgkeep, origin.on("/a.png", script))).body == make_image()
    await script.ended.wait()
    assert sum(parsed) <= 16 * PIECE


async def test_endless_redirects_cost_the_limit(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 2, "redirects_max": 3})

    async def on(exchange: Exchange) -> None:
        await exchange.answer(b"", status="302 Found", headers={"Location": f"/a.png?{len(origin.seen)}"})

    assert (await look(imgkeep, origin.on("/a.png", on))).code == "origin_error"
    assert origin.asked("/a.png") == 4


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: bytes(brotli.compress(body, quality=1)),
    "zstd": zstd.compress,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body)),
    "br, zstd": lambda body: zstd.compress(brotli.compress(body, quality=1)),
}
"""Codings that no request asked for."""


@pytest.mark.parametrize("coding", CODINGS)
async def test_bomb_stops_at_the_limit_and_delays_no_hit(start: Start, origin: FakeOrigin, coding: str) -> None:
    imgkeep = await start(fetch={"retries_max": 0, "body_bytes_max": 10_000_000})
    hit = origin.gives("/hit.png", make_image())
    assert (await look(imgkeep, hit)).status == 200
    bomb = await asyncio.to_thread(lambda: CODINGS[coding](png_of(20_000_000)))
    urls = [origin.gives(f"/{n}.png", bomb, headers={"Content-Encoding": coding}) for n in range(4)]
    asking = [asyncio.create_task(look(imgkeep, url)) for url in urls]
    assert (await look(imgkeep, hit)).status == 200
    for seen in await asyncio.gather(*asking):
        assert seen.broken or seen.code in {"too_large", "origin_error"}
    assert len(imgkeep.files("objects")) == 1


async def test_window_slots_are_released(start: Start, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowSlots.__init__, "__defaults__", (1, 10.0))
    imgkeep = await start(fetch={"retries_max": 0})
    whole = CODINGS["br"](make_image())
    for number in range(3):
        for name, body in (("whole", whole), ("cut", whole[: len(whole) // 2]), ("bad", b"\xff" * 100)):
            await look(imgkeep, origin.gives(f"/{name}{number}.png", body, headers={"Content-Encoding": "br"}))
            status = "400 Bad Request"
            refused = origin.gives(f"/no-{name}{number}", body, status=status, headers={"Content-Encoding": "br"})
            assert (await look(imgkeep, refused)).code == "origin_error"
    assert len(imgkeep.files("records")) == 3


def unfinished(body: bytes) -> bytes:
    """Return the beginning of a gzip stream that holds all of `body` and goes on."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(body) + compressor.flush(zlib.Z_SYNC_FLUSH)


GZIP = OK + b"Content-Encoding: gzip\r\n\r\n"
MEMBERS = {
    "members": (GZIP + gzip.compress(png_of(3000)[:2900]), gzip.compress(b"")),
    "empty blocks": (GZIP + unfinished(png_of(3000)), b"\x00\x00\x00\xff\xff"),
}


@pytest.mark.parametrize(("begins", "again"), MEMBERS.values(), ids=MEMBERS.keys())
async def test_endless_compressed_body_is_cut(start: Start, origin: FakeOrigin, begins: bytes, again: bytes) -> None:
    imgkeep = await start(fetch={"retries_max": 0, "body_bytes_max": 1_000_000})
    script = Endless(begins, again)
    seen = await look(imgkeep, origin.on("/a.png", script))
    assert seen.broken or seen.code in {"origin_error", "too_large"}
    await script.ended.wait()
    assert script.sent <= SENT_MAX
    await nothing_kept(imgkeep)


async def test_segments_of_one_byte_make_an_image(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start()
    body = make_image(width=8, height=8)

    async def script(exchange: Exchange) -> None:
        for byte in framed(body, "length"):
            exchange.writer.write(bytes([byte]))
            await asyncio.sleep(0)

    assert (await look(imgkeep, origin.on("/a.png", script))).body == body


async def test_dripping_head_gets_the_read_timeout(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"read_timeout_s": 0.4, "retries_max": 0})
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(OK + b"X-A: ")
        while not exchange.writer.is_closing():
            await exchange.send(b"b")
            sent += 1
            await asyncio.sleep(0.05)

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.code) == (504, "origin_timeout")
    assert sent <= 100, "sent in five seconds: the other limits are longer"


# --- what an origin asks for


async def test_429_for_one_client_is_remembered_for_all(start: Start, origin: FakeOrigin) -> None:
    timer = Timer()
    imgkeep = await start(platform=Platform(timer=timer), server={"trusted_proxies": ["127.0.0.0/8"]})
    url = origin.gives("/a.png", b"", status="429 Too Many Requests", headers={"Retry-After": "3600"})
    assert (await look(imgkeep, url, headers={"X-Forwarded-For": "203.0.113.1"})).status == 502
    origin.gives("/a.png", make_image())
    timer.seconds += TOO_MANY_REQUESTS_S - 1
    assert (await look(imgkeep, url, headers={"X-Forwarded-For": "198.51.100.7"})).status == 502
    timer.seconds += 1
    assert (await look(imgkeep, url, headers={"X-Forwarded-For": "198.51.100.7"})).status == 200


@pytest.mark.parametrize(("asked", "seconds"), [(0, 0), (17, 17), (60, 60), (61, 60), (3600, 60)])
def test_429_is_remembered_for_a_minute_at_most(asked: int, seconds: int) -> None:
    assert failure_ttl_s(OriginError("x", origin_status=429, retry_after_s=asked)) == seconds


async def test_retry_after_holds_no_slot(start: Start, origin: FakeOrigin) -> None:
    """Retries are bounded whatever `Retry-After` says, and one longer than a client waits is none."""
    imgkeep = await start(fetch={"retries_max": 2})
    for seconds, asked in (("0", 3), ("6", 1), ("-1", 3), ("99999999999", 3)):
        url = origin.gives(f"/{asked}{seconds}.png", b"", status="503 x", headers={"Retry-After": seconds})
        assert (await look(imgkeep, url)).status == 502
        assert origin.asked(f"/{asked}{seconds}.png") == asked


def test_aiohttp_connection_is_as_expected() -> None:
    """`OriginClient` puts its own class of connections into a connector by a private name."""
    from aiohttp.client_proto import ResponseHandler  # noqa: PLC0415
    from aiohttp.connector import BaseConnector  # noqa: PLC0415

    assert "_factory" in BaseConnector.__init__.__code__.co_names
    assert issubclass(OriginConnection, ResponseHandler)
    assert sys.version_info >= (3, 11)
