"""Clients that are slow, rude or clever (C1 to C5 of the fault matrix)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from imgkeep.bootstrap.server import SERVICES
from tests.support.image_requests import fills_done, store_image
from tests.support.images import png_of
from tests.support.impatient_server import LIMIT_S, deaf_socket, serve_impatiently
from tests.support.origins import gated_body
from tests.support.raw_http import ask, port_of, request, split, talk, target_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep


async def closed_after(port: int, data: bytes, *, drip: bytes = b"") -> float:
    """Send `data`, then `drip` byte by byte for ever, and return the seconds until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.monotonic()
    writer.write(data)

    async def dripping() -> None:
        with suppress(ConnectionError):
            for byte in drip * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(LIMIT_S / 8)

    task = asyncio.create_task(dripping())
    try:
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                await reader.read()
        return time.monotonic() - start
    finally:
        task.cancel()
        writer.close()


SLOW = [
    pytest.param(b"", b"", id="silent"),
    pytest.param(b"GET /healthz HT", b"", id="half a request line"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n", id="headers byte by byte"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"", id="idle after an answer"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", b"", id="no body"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", b"x", id="body byte by byte"),
    pytest.param(b"POST /img HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", b"x", id="refused body"),
    pytest.param(b"GET /img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunks"),
    pytest.param(
        b"GET /img HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n", b"", id="expecting"
    ),
]


@pytest.mark.parametrize(("data", "drip"), SLOW)
async def test_slow_request_ends_at_the_timeout(tmp_path: Path, data: bytes, drip: bytes) -> None:
    async with serve_impatiently(tmp_path) as (port, _):
        seconds = await closed_after(port, data, drip=drip)
    assert LIMIT_S * 0.5 < seconds < 9, "the defaults are longer"


async def test_idle_connections_delay_no_others(tmp_path: Path) -> None:
    async with serve_impatiently(tmp_path, limit_s=60) as (port, _):
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
        for number, (_, writer) in enumerate(pairs):
            writer.write(b"GET /healthz HTTP/1.1\r\nX" if number % 2 else b"")
        async with asyncio.timeout(30):
            for _ in range(20):
                assert split(await talk(port, request("/healthz"))).status == 200
        for _, writer in pairs:
            writer.close()


@pytest.mark.parametrize("stored", [True, False], ids=["hit", "miss"])
async def test_stalled_client_is_disconnected(tmp_path: Path, origin: FakeOrigin, stored: bool) -> None:  # noqa: FBT001 - a table
    body = png_of(12_000_000)
    url = origin.gives("/a.png", body)
    async with serve_impatiently(tmp_path) as (port, app):
        if stored:
            assert split(await talk(port, request(target_of(url)))).body == body
            await app[SERVICES].image_service.drain()
        sock = await asyncio.to_thread(deaf_socket, port)
        try:
            await asyncio.to_thread(sock.sendall, request(target_of(url), close=False))
            metrics = app[SERVICES].metrics
            await until(lambda: b'outcome="client_left"' in metrics.page())
            # The connection is broken off: the bytes under way arrive, and then no proper end.
            sock.settimeout(5)
            received = 0
            with suppress(ConnectionError):
                while data := await asyncio.to_thread(sock.recv, 65_536):
                    received += len(data)
            assert received < len(body)
        finally:
            sock.close()
        await app[SERVICES].image_service.drain()
        # Other clients noticed nothing, and nothing is left open.
        assert split(await talk(port, request(target_of(url)))).headers["cache-status"] == "imgkeep; hit"
    assert origin.asked("/a.png") == 1
    assert not list((tmp_path / "partial").iterdir())


async def test_stalled_client_does_not_slow_others(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(12_000_000)
    url = origin.gives("/a.png", body)
    sock = await asyncio.to_thread(deaf_socket, port_of(imgkeep))
    try:
        await asyncio.to_thread(sock.sendall, request(target_of(url), close=False))
        await until(lambda: bool(origin.seen))
        assert (await ask(imgkeep, target_of(url))).body == body
    finally:
        sock.close()


ENCODED = quote("https://h.example/a.png", safe="")
BAD_SOURCES = {
    "no query": "/img",
    "empty query": "/img?",
    "missing": "/img?other=1",
    "no value": "/img?src",
    "empty": "/img?src=",
    "twice": f"/img?src={ENCODED}&src={ENCODED}",
    "our own twice": f"/img?src={ENCODED}&sig=1&sig=2",
    "encoded twice": f"/img?src={quote(ENCODED, safe='')}",
    "NUL": f"/img?src={ENCODED}%00",
    "line break": f"/img?src={ENCODED}%0d%0aX:%20y",
    "invalid UTF-8": "/img?src=https%3A%2F%2Fh.example%2F%ff%fe",
    "invalid UTF-8 in the host": "/img?src=https%3A%2F%2Fh%ff.example%2F",
    "a plus in the host": "/img?src=https%3A%2F%2Fh.exa+mple%2Fa",
    "relative": "/img?src=%2Fa.png",
    "without scheme": "/img?src=%2F%2Fh.example%2Fa.png",
    "file": "/img?src=file%3A%2F%2F%2Fetc%2Fpasswd",
    "data": "/img?src=data%3Aimage%2Fpng%3Bbase64%2Cxx",
    "javascript": "/img?src=javascript%3Aalert(1)",
    "no host": "/img?src=https%3A%2F%2F",
    "port 0": "/img?src=https%3A%2F%2Fh.example%3A0%2F",
    "port 99999": "/img?src=https%3A%2F%2Fh.example%3A99999%2F",
    "20 KB": "/img?src=https%3A%2F%2Fh.example%2F" + "a" * 20_000,
    "only separators": "/img?" + "&" * 20_000,
    "a stray percent": "/img?src=%",
}
BAD_OPTIONS = {
    "unknown parameter": f"/img?src={ENCODED}&width=100",
    "unknown parameter ahead": f"/img?width=100&src={ENCODED}",
    "a huge width": f"/img?src={ENCODED}&w=1e9",
    "a width twice": f"/img?src={ENCODED}&w=1&w=1",
    "digits of another script": f"/img?src={ENCODED}&w={quote('٤٠')}",
    "20 KB": f"/img?src={ENCODED}&w=" + "4" * 20_000,
    "a preset that is not there": f"/img?src={ENCODED}&preset=thumb",
    "contradicting": f"/img?src={ENCODED}&fit=cover&w=1",
}


BAD_REQUESTS = {"invalid_source": BAD_SOURCES, "invalid_option": BAD_OPTIONS}


async def test_unusable_source_is_a_400_and_no_fetch(
    tmp_path: Path, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    async with serve_impatiently(tmp_path) as (port, _):
        cases = [(code, *each) for code, table in BAD_REQUESTS.items() for each in table.items()]
        for code, name, target in cases:
            with subtests.test(name):
                answer = split(await talk(port, request(target)))
                metrics = await talk(port, request("/metrics"))
                assert answer.status == 400
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.headers["cache-control"] == "no-store"
                assert json.loads(answer.body)["code"] == code
                assert origin.connections == 0
                assert b"imgkeep_requests_total{" in metrics
                assert b"imgkeep_origin_requests_total{" not in metrics


async def test_request_line_of_100_kb_is_refused(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    data = await talk(port_of(imgkeep), request("/img?src=" + origin.url("/" + "a" * 100_000)))
    assert data == b"" or data.startswith(b"HTTP/1.0 400 ")
    assert origin.connections == 0
    assert (await ask(imgkeep, "/healthz")).status == 200


async def test_plus_in_an_encoded_source_is_a_space(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    base = quote(origin.url("/a"), safe="")
    await ask(imgkeep, f"/img?src={base}%2Bb")
    await ask(imgkeep, f"/img?src={base}+b")
    assert [exchange.target for exchange in origin.seen] == ["/a+b", "/a%20b"]


CL, TE = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNK = b"0\r\n\r\n"


def with_fields(*fields: bytes, body: bytes = b"", line: bytes = b"POST /nothing HTTP/1.1") -> bytes:
    return line + b"\r\nHost: x\r\n" + b"".join(fields) + b"\r\n" + body


SMUGGLING = {
    "CL and TE": with_fields(CL, TE, body=CHUNK + NEXT),
    "TE and CL": with_fields(TE, CL, body=CHUNK + NEXT),
    "two CL": with_fields(CL, b"Content-Length: 6\r\n", body=b"xxxxx" + NEXT),
    "two equal CL": with_fields(CL, CL, body=b"xxxxx" + NEXT),
    "CL list": with_fields(b"Content-Length: 5, 5\r\n", body=b"xxxxx" + NEXT),
    "CL negative": with_fields(b"Content-Length: -1\r\n", body=NEXT),
    "CL plus": with_fields(b"Content-Length: +5\r\n", body=b"xxxxx" + NEXT),
    "CL hex": with_fields(b"Content-Length: 0x5\r\n", body=b"xxxxx" + NEXT),
    "CL underscore": with_fields(b"Content-Length: 1_0\r\n", body=NEXT),
    "CL huge": with_fields(b"Content-Length: 99999999999999999999999\r\n", body=NEXT),
    "CL empty": with_fields(b"Content-Length: \r\n", body=NEXT),
    "CL other digits": with_fields("Content-Length: \u0665\r\n".encode(), body=b"xxxxx" + NEXT),
    "CL spaces inside": with_fields(b"Content-Length: 5 5\r\n", body=b"xxxxx" + NEXT),
    "space before colon": with_fields(b"Content-Length : 5\r\n", body=b"xxxxx" + NEXT),
    "TE space before colon": with_fields(b"Transfer-Encoding : chunked\r\n", CL, body=CHUNK + NEXT),
    "TE tab": with_fields(b"Transfer-Encoding:\tchunked\r\n", CL, body=CHUNK + NEXT),
    "TE vertical tab": with_fields(b"Transfer-Encoding: \x0bchunked\r\n", CL, body=CHUNK + NEXT),
    "TE quoted": with_fields(b'Transfer-Encoding: "chunked"\r\n', body=CHUNK + NEXT),
    "TE twice": with_fields(TE, TE, body=CHUNK + NEXT),
    "TE identity": with_fields(b"Transfer-Encoding: identity\r\n", CL, body=b"xxxxx" + NEXT),
    "TE xchunked": with_fields(b"Transfer-Encoding: xchunked\r\n", CL, body=b"xxxxx" + NEXT),
    "TE chunked last but one": with_fields(b"Transfer-Encoding: chunked, gzip\r\n", body=CHUNK + NEXT),
    "TE folded": with_fields(b"Transfer-Encoding:\r\n chunked\r\n", CL, body=CHUNK + NEXT),
    "TE in HTTP/1.0": with_fields(TE, body=CHUNK + NEXT, line=b"POST /nothing HTTP/1.0"),
    "name with NUL": with_fields(b"Content-Length\x00: 5\r\n", body=b"xxxxx" + NEXT),
    "value with NUL": with_fields(b"X: a\x00b\r\n", body=NEXT),
    "value with CR": with_fields(b"X: a\rTransfer-Encoding: chunked\r\n", body=CHUNK + NEXT),
    "bare LF": b"GET /nothing HTTP/1.1\nHost: x\n\n" + NEXT,
    "LF between fields": b"GET /nothing HTTP/1.1\r\nHost: x\nX: y\r\n\r\n" + NEXT,
    "folded field": with_fields(b"X: a\r\n b\r\n", body=NEXT),
    "field without colon": with_fields(b"nonsense\r\n", body=NEXT),
    "empty field name": with_fields(b": x\r\n", body=NEXT),
    "chunk size negative": with_fields(TE, body=b"-1\r\nx\r\n0\r\n\r\n" + NEXT),
    "chunk size 0x": with_fields(TE, body=b"0x1\r\nx\r\n0\r\n\r\n" + NEXT),
    "chunk size huge": with_fields(TE, body=b"fffffffffffffffff\r\nx\r\n0\r\n\r\n" + NEXT),
    "chunk size and space": with_fields(TE, body=b"1 \r\nx\r\n0\r\n\r\n" + NEXT),
    "chunk extension with LF": with_fields(TE, body=b"1;a\nb\r\nx\r\n0\r\n\r\n" + NEXT),
    "chunk without CRLF": with_fields(TE, body=b"1\r\nxy0\r\n\r\n" + NEXT),
    "chunk with LF": with_fields(TE, body=b"1\nx\n0\n\n" + NEXT),
    "trailer": with_fields(TE, body=b"0\r\nContent-Length: 5\r\n\r\n" + NEXT),
    "two Hosts": b"GET /nothing HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + NEXT,
    "HTTP/0.9": b"GET /nothing\r\n\r\n" + NEXT,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NEXT,
    "version with spaces": b"GET /nothing  HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "version nonsense": b"GET /nothing HTTP/1.1x\r\nHost: x\r\n\r\n" + NEXT,
    "space in target": b"GET /nothing?src=a b HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "method with a bracket": b"GE(T /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "absolute target": b"GET http://evil.example/nothing HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "authority target": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + NEXT,
    "upgrade": b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + NEXT,
    "h2c": b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n" + NEXT,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200,
    "nothing but CRLF": b"\r\n" * 20 + NEXT,
}

FRAMED = {
    "nothing but CRLF": [404, 200],
    "h2c": [404],  # and the bytes behind it go with the connection
}


async def test_ambiguous_request_is_refused_or_framed(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """A refusal ends the connection; otherwise each request gets its own response."""
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serve_impatiently(tmp_path, limit_s=3) as (port, _):
        for name, smuggled in SMUGGLING.items():
            with subtests.test(name):
                data = await talk(port, smuggled + last)
                statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]
                assert statuses in ([400], FRAMED.get(name, [404, 404, 200]))
                assert split(await talk(port, request("/healthz"))).status == 200
                assert "Traceback" not in data.decode("latin-1")


async def test_pipelined_requests_are_answered_in_order(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", png_of(1000))
    await store_image(imgkeep, url)
    data = await talk(
        port_of(imgkeep),
        request(target_of(url), "Range: bytes=0-3", close=False)
        + request("/nothing", close=False)
        + request(target_of(url), method="HEAD", close=False)
        + request("/healthz"),
    )
    assert [int(part[2:5]) for part in data.split(b"HTTP/1.")[1:]] == [206, 404, 200, 200]
    await fills_done(imgkeep)


async def test_client_that_leaves_early_is_counted_and_is_no_error(
    tmp_path: Path, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(png_of(500_000), gate, ahead=0))
    async with serve_impatiently(tmp_path) as (port, app):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(target_of(url)))
        await until(lambda: bool(origin.seen))
        writer.transport.abort()
        assert split(await talk(port, request("/healthz"))).status == 200
        gate.set()
        await app[SERVICES].image_service.drain()
        assert split(await talk(port, request(target_of(url)))).headers["cache-status"] == "imgkeep; hit"
        counted = b'imgkeep_requests_total{outcome="client_left",route="/img",status="499"} 1.0'
        assert counted in app[SERVICES].metrics.page()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
