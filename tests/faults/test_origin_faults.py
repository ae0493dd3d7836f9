"""Origins that break off, lie, refuse or send too much (fault matrix O1 to O10): nothing of that is ever stored."""

from __future__ import annotations

import asyncio
import gzip
import sys
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]  # it has no annotations
import pytest

from imgkeep.bootstrap.platform import Platform
from imgkeep.images.negative_cache import SERVER_ERROR_S, TOO_MANY_REQUESTS_S
from tests.support.images import make_image, png_of
from tests.support.network import Timer, counted, look, nothing_kept
from tests.support.waiting import until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.network import Seen
    from tests.support.origins import Exchange, FakeOrigin, Script
    from tests.support.server import Imgkeep

    StartImgkeep = Callable[..., Awaitable[Imgkeep]]

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def is_no_image(seen: Seen) -> bool:
    """Tell whether a client can see that it got no whole image."""
    return seen.broken or seen.status in {422, 502}


async def refused_without_trace(imgkeep: Imgkeep, origin: FakeOrigin, url: str, code: str) -> Seen:
    """Ask twice for what fails: neither answer passes for an image, nothing is stored, and it is counted."""
    path = "/" + url.split("/", 3)[3]
    seen = await look(imgkeep, url)
    assert is_no_image(seen), seen
    await until(lambda: not imgkeep.files("partial"))
    assert await counted(imgkeep, f'imgkeep_fills_total{{outcome="{code}"}}') == 1
    assert origin.asked(path) == 1
    await nothing_kept(imgkeep)
    return seen


# O1, O2: the framing tells that something is missing.

BROKEN_FRAMING = {
    "length, FIN": ("Content-Length: {size}", "{half}", "finish"),
    "length, RST": ("Content-Length: {size}", "{half}", "reset"),
    "length, one byte short": ("Content-Length: {more}", "{whole}", "finish"),
    "chunked, no last chunk": ("Transfer-Encoding: chunked", "{chunked}", "finish"),
    "chunked, no last chunk, RST": ("Transfer-Encoding: chunked", "{chunked}", "reset"),
    "chunked, cut in a chunk": ("Transfer-Encoding: chunked", "{cut chunk}", "finish"),
    "chunked, no blank line at the end": ("Transfer-Encoding: chunked", "{open end}", "finish"),
    "chunked, nonsense for a size": ("Transfer-Encoding: chunked", "{nonsense}", "finish"),
}


@pytest.mark.parametrize("size", [900, 300_000])
@pytest.mark.parametrize(("field", "sends", "closes"), BROKEN_FRAMING.values(), ids=BROKEN_FRAMING.keys())
async def test_short_body_is_not_stored_and_fetched_again(
    imgkeep: Imgkeep, origin: FakeOrigin, *, field: str, sends: str, closes: str, size: int
) -> None:
    body = png_of(size)
    chunk = f"{size:x}\r\n".encode() + body + b"\r\n"
    data = {
        "{half}": body[: size // 2],
        "{whole}": body,
        "{chunked}": chunk,
        "{cut chunk}": chunk[: size // 2],
        "{open end}": chunk + b"0\r\n",
        "{nonsense}": chunk + b"zz\r\n",
    }[sends]

    async def script(exchange: Exchange) -> None:
        if exchange.number:
            await exchange.answer(body)
            return
        await exchange.send_head(field.format(size=size, more=size + 1))
        await exchange.send(data)
        getattr(exchange, closes)()

    url = origin.on("/a.png", script)
    await refused_without_trace(imgkeep, origin, url, "origin_error")
    again = await look(imgkeep, url)
    assert (again.status, again.body, again.broken) == (200, body, False)
    assert origin.asked("/a.png") == 2


async def test_bytes_behind_the_declared_length_are_dropped(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(2000)

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 2000", "Connection: close")
        await exchange.send(body + b"<script>")
        exchange.finish()

    seen = await look(imgkeep, origin.on("/a.png", script))
    if is_no_image(seen):
        await nothing_kept(imgkeep)
    else:
        assert seen.body == body


# O3: only the image's own end tells.


def closing(body: bytes, *fields: str, version: str = "1.1", reset: bool = False) -> Script:
    """Answer with a body that ends where the connection does."""

    async def script(exchange: Exchange) -> None:
        head = "\r\n".join([f"HTTP/{version} 200 OK", "Connection: close", *fields, "", ""])
        await exchange.send(head.encode() + body)
        if reset:
            await asyncio.sleep(0.05)  # what is in flight arrives first, or nothing but the reset would
            exchange.reset()
        else:
            exchange.finish()

    return script


@pytest.mark.parametrize("percent", [1, 50, 99])
@pytest.mark.parametrize("form", FORMS)
async def test_image_cut_by_a_close_is_not_stored(
    imgkeep: Imgkeep, origin: FakeOrigin, form: str, percent: int
) -> None:
    body = make_image(form, width=320, height=240)
    url = origin.on("/a", closing(body[: len(body) * percent // 100]))
    seen = await look(imgkeep, url)
    assert is_no_image(seen), seen
    await until(lambda: not imgkeep.files("partial"))
    await nothing_kept(imgkeep)
    failed = [
        await counted(imgkeep, f'imgkeep_fills_total{{outcome="{code}"}}') for code in ("origin_error", "not_an_image")
    ]
    assert sum(failed) == 1


@pytest.mark.parametrize("missing", [1, 2, 12])
async def test_missing_last_bytes_are_noticed(imgkeep: Imgkeep, origin: FakeOrigin, missing: int) -> None:
    body = make_image("PNG")
    seen = await look(imgkeep, origin.on("/a", closing(body[:-missing])))
    assert is_no_image(seen)
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_whole_image_ended_by_a_close_is_stored(
    imgkeep: Imgkeep, origin: FakeOrigin, form: str, version: str
) -> None:
    body = make_image(form)
    url = origin.on("/a", closing(body, version=version))
    seen = await look(imgkeep, url)
    assert (seen.status, seen.body, seen.broken) == (200, body, False)
    hit = await look(imgkeep, url)
    assert (hit.body, hit.headers["Cache-Status"]) == (body, "imgkeep; hit")
    assert [path.read_bytes() for path in imgkeep.files("objects")] == [body]


async def test_image_cut_by_a_reset_is_not_stored(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = make_image("JPEG", width=320, height=240)
    seen = await look(imgkeep, origin.on("/a", closing(body[: len(body) // 2], reset=True)))
    assert is_no_image(seen)
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("coding", ["xchunked", "chunked, identity", "identity", "chunked, gzip", "gzip, chunked, foo"])
async def test_unknown_transfer_coding_proves_no_end(imgkeep: Imgkeep, origin: FakeOrigin, coding: str) -> None:
    body = make_image("JPEG", width=320, height=240)
    seen = await look(imgkeep, origin.on("/a", closing(body[: len(body) // 2], f"Transfer-Encoding: {coding}")))
    assert is_no_image(seen)
    await nothing_kept(imgkeep)


# O4: a content coding that no request asked for.


def _bomb() -> bytes:
    """A PNG whose padding is 50 MiB of nothing, in 50 KB."""
    return gzip.compress(png_of(50 * 1024 * 1024), 9)


EMPTY_MEMBER = gzip.compress(b"")
ENDLESS_NOTHING = b"\x1f\x8b\x08\x00" + bytes(6) + b"\x00\x00\x00\xff\xff" * 400_000
"""Empty blocks, 2 MB of them: something comes, and nothing comes out."""
ENDLESS_NAME = b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 2_000_000

BAD_GZIP = {
    "cut": gzip.compress(make_image("PNG", width=320, height=240))[:-20],
    "cut in half": gzip.compress(make_image())[: len(gzip.compress(make_image())) // 2],
    "not gzip": make_image(),
    "nothing": b"",
    "100,000 empty members": EMPTY_MEMBER * 100_000,
    "half an image and another member": gzip.compress(make_image()[:2000]) + gzip.compress(make_image()[2000:]),
    "zlib": zlib.compress(make_image()),
}


@pytest.mark.parametrize("body", BAD_GZIP.values(), ids=BAD_GZIP.keys())
async def test_damaged_compressed_body_is_not_stored(imgkeep: Imgkeep, origin: FakeOrigin, body: bytes) -> None:
    url = origin.gives("/a.png", body, headers={"Content-Encoding": "gzip"})
    await refused_without_trace(imgkeep, origin, url, "origin_error")


async def test_compressed_bomb_stops_at_the_limit(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 1_000_000})
    bomb = await asyncio.to_thread(_bomb)
    assert len(bomb) < 100_000
    url = origin.gives("/a.png", bomb, headers={"Content-Encoding": "gzip"})
    seen = await refused_without_trace(imgkeep, origin, url, "too_large")
    assert len(seen.body) <= 1_000_000


@pytest.mark.parametrize("body", [ENDLESS_NOTHING, ENDLESS_NAME], ids=["empty blocks", "a name without end"])
async def test_body_that_decodes_to_nothing_fails(start: StartImgkeep, origin: FakeOrigin, body: bytes) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 1_000_000})

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Encoding: gzip", "Connection: close")
        await exchange.send(body)
        exchange.finish()

    await refused_without_trace(imgkeep, origin, origin.on("/a.png", script), "origin_error")


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", " gzip "])
async def test_compressed_image_is_stored_decoded(imgkeep: Imgkeep, origin: FakeOrigin, coding: str) -> None:
    body = make_image(width=320, height=240)
    url = origin.gives("/a.png", gzip.compress(body), headers={"Content-Encoding": coding})
    for outcome in ("imgkeep; fwd=uri-miss; stored", "imgkeep; hit"):
        seen = await look(imgkeep, url)
        assert (seen.status, seen.body, seen.headers["Cache-Status"]) == (200, body, outcome)
        assert "Content-Encoding" not in seen.headers


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "gzip, gzip", "br, gzip", "X-GZIP"])
async def test_unapplied_coding_is_refused(imgkeep: Imgkeep, origin: FakeOrigin, coding: str) -> None:
    url = origin.gives("/a.png", make_image(), headers={"Content-Encoding": coding})
    seen = await refused_without_trace(imgkeep, origin, url, "origin_error")
    assert seen.status == 502


UNASKED = {
    "br": ("br", brotli.compress(make_image())),
    "deflate": ("deflate", zlib.compress(make_image())),
    "deflate without a wrapper": ("deflate", zlib.compress(make_image())[2:-4]),
    "zstd": ("zstd", zstd.compress(make_image())),
    "gzip twice": ("gzip, gzip", gzip.compress(gzip.compress(make_image()))),
    "br, gzip": ("br, gzip", gzip.compress(brotli.compress(make_image()))),
    "gzip without its checksum": ("gzip", gzip.compress(make_image())[:-8]),
    "gzip and a newline": ("gzip", gzip.compress(make_image()) + b"\n"),
    "gzip and zeros": ("gzip", gzip.compress(make_image()) + bytes(1000)),
    "gzip and garbage": ("gzip", gzip.compress(make_image()) + b"garbage" * 100),
    "gzip and empty members": ("gzip", gzip.compress(make_image()) + EMPTY_MEMBER * 100_000),
    "gzip and another image": ("gzip", gzip.compress(make_image()) * 2),
    "aws-chunked,gzip": ("aws-chunked,gzip", gzip.compress(make_image())),
    "aws-chunked,gzip, and it is not": ("aws-chunked,gzip", make_image()),
    **{
        name: (name, make_image())
        for name in ("aws-chunked", "base64", "utf-8", "binary", "undefined", "none", "image/png", "compress", "x, y")
    },
}


@pytest.mark.parametrize("closes", [False, True], ids=["length", "closing"])
async def test_codings_are_decoded_as_browsers_do(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests, *, closes: bool
) -> None:
    for number, (name, (coding, body)) in enumerate(UNASKED.items()):
        with subtests.test(name):
            if closes:
                url = origin.on(f"/{number}.png", closing(body, f"Content-Encoding: {coding}"))
            else:
                url = origin.gives(f"/{number}.png", body, headers={"Content-Encoding": coding})
            for outcome in ("imgkeep; fwd=uri-miss; stored", "imgkeep; hit"):
                seen = await look(imgkeep, url)
                assert (seen.status, seen.body, seen.headers["Cache-Status"]) == (200, make_image(), outcome)
    assert len(imgkeep.files("records")) == len(UNASKED)
    assert [path.read_bytes() for path in imgkeep.files("objects")] == [make_image()]


async def test_identity_is_no_coding(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    seen = await look(imgkeep, origin.gives("/a.png", make_image(), headers={"Content-Encoding": "identity"}))
    assert (seen.status, seen.body) == (200, make_image())


# O5: too large.


async def test_body_declared_too_large_is_not_read(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 10_000})
    closed = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 10001")
        # Not a byte of the body is sent, so the answer can only come from the head.
        await exchange.gone()
        closed.set()

    url = origin.on("/a.png", script)
    seen = await asyncio.wait_for(refused_without_trace(imgkeep, origin, url, "too_large"), 20)
    assert (seen.status, seen.code) == (422, "too_large")
    await asyncio.wait_for(closed.wait(), 20)


@pytest.mark.parametrize("after_redirect", [False, True], ids=["at once", "after a redirect"])
@pytest.mark.parametrize("chunked", [False, True], ids=["closing", "chunked"])
async def test_body_that_grows_too_large_is_cut(
    start: StartImgkeep, origin: FakeOrigin, *, chunked: bool, after_redirect: bool
) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 100_000})
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send_head("Transfer-Encoding: chunked" if chunked else "Connection: close")
        data = png_of(50_000)[:-12]
        while sent < 100_000_000:
            await exchange.send(f"{len(data):x}\r\n".encode() + data + b"\r\n" if chunked else data)
            sent += len(data)
            data = bytes(50_000)

    url = origin.on("/a.png", script)
    if after_redirect:
        url = origin.gives("/r.png", b"", status="302 Found", headers={"Location": "/a.png"})
    seen = await refused_without_trace(imgkeep, origin, url, "too_large")
    assert len(seen.body) <= 100_000
    assert sent < 50_000_000  # the rest is what fits into the sockets' buffers


async def test_body_of_exactly_the_limit_is_stored(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 100_000})
    whole = await look(imgkeep, origin.gives("/a.png", png_of(100_000)))
    assert (whole.status, len(whole.body), whole.broken) == (200, 100_000, False)
    closed = await look(imgkeep, origin.on("/b.png", closing(png_of(100_000))))
    assert (closed.status, len(closed.body), closed.broken) == (200, 100_000, False)


# O6: a part that no request asked for.


RANGES = [
    None,
    "bytes 0-99/5000",
    "bytes 1-4999/5000",
    "bytes 0-4999/*",
    "bytes */5000",
    "items 0-4999/5000",
    "0-4999/5000",
]


@pytest.mark.parametrize("content_range", RANGES)
@pytest.mark.parametrize("part", [slice(0, 4000), slice(2500, 5000)], ids=["beginning", "end"])
async def test_part_is_refused(imgkeep: Imgkeep, origin: FakeOrigin, content_range: str | None, part: slice) -> None:
    headers = {} if content_range is None else {"Content-Range": content_range}
    url = origin.gives("/a.png", png_of(5000)[part], status="206 Partial Content", headers=headers)
    seen = await look(imgkeep, url)
    assert seen.broken or (seen.status, seen.code) == (502, "origin_error")
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("content_range", RANGES)
async def test_whole_is_stored_despite_its_range(
    imgkeep: Imgkeep, origin: FakeOrigin, content_range: str | None
) -> None:
    headers = {} if content_range is None else {"Content-Range": content_range}
    url = origin.gives("/a.png", png_of(5000), status="206 Partial Content", headers=headers)
    seen = await look(imgkeep, url)
    assert (seen.status, seen.body) == (200, png_of(5000))
    assert len(imgkeep.files("records")) == 1


async def test_image_with_a_status_that_browsers_show_is_stored(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    for number, status in enumerate((200, 201, 202, 203, 207, 208, 226, 299, 300, 305, 310, 399), 1):
        with subtests.test(status=status):
            url = origin.gives(f"/{status}.png", png_of(5000), status=f"{status} Fine")
            seen = await look(imgkeep, url)
            assert (seen.status, seen.body) == (200, png_of(5000))
            assert len(imgkeep.files("records")) == number


@pytest.mark.parametrize(
    "head",
    [
        "200 OK\r\nContent-Length: 0",
        "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0",
        "204 No Content",
        "205 Reset Content\r\nContent-Length: 0",
        "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0",
        "200 OK\r\nConnection: close",
    ],
)
async def test_empty_answer_is_remembered_shortly(imgkeep: Imgkeep, origin: FakeOrigin, head: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 {head}\r\n\r\n".encode())
        if "close" in head:
            exchange.finish()

    url = origin.on("/a.png", script)
    for _ in range(2):
        seen = await look(imgkeep, url)
        assert (seen.status, seen.code) == (502, "origin_error")
    assert origin.asked("/a.png") == 1
    await nothing_kept(imgkeep)


async def test_part_that_is_the_whole_is_stored(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    headers = {"Content-Range": "bytes 0-4999/5000"}
    url = origin.gives("/a.png", png_of(5000), status="206 Partial Content", headers=headers)
    seen = await look(imgkeep, url)
    assert (seen.status, seen.body) == (200, png_of(5000))
    assert len(imgkeep.files("records")) == 1


# O7, O8: judged by the bytes.

NO_IMAGES = {
    "HTML": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "image/png"),
    "HTML, long": (b"<html>" + b"x" * 100_000, "image/jpeg"),
    "HTML with an SVG in it": (b"<html><body>" + SVG + b"</body></html>", "image/svg+xml"),
    "JSON": (b'{"error": "expired"}', "image/png"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "image/png"),
    "one byte": (b"\x89", "image/png"),
    "one byte of JPEG": (b"\xff", "image/jpeg"),
    "a signature alone": (b"\x89PNG\r\n\x1a\n", "image/png"),
    "GIF with a script for a screen": (b"GIF89a/*" + b"\x00" * 3, "image/gif"),
    "PDF": (b"%PDF-1.7\n" + b"x" * 100, "image/png"),
    "video": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + b"\x00" * 100, "image/avif"),
}


@pytest.mark.parametrize(("body", "media_type"), NO_IMAGES.values(), ids=NO_IMAGES.keys())
async def test_other_bytes_are_refused_whatever_their_type(
    imgkeep: Imgkeep, origin: FakeOrigin, body: bytes, media_type: str
) -> None:
    url = origin.gives("/a.png", body, headers={"Content-Type": media_type})
    seen = await refused_without_trace(imgkeep, origin, url, "not_an_image")
    assert (seen.status, seen.code) == (422, "not_an_image")


@pytest.mark.parametrize(
    ("body", "called", "media_type"),
    [
        (make_image("PNG"), "text/html", "image/png"),
        (make_image("JPEG"), "application/json", "image/jpeg"),
        (make_image("GIF"), "image/png; charset=utf-8", "image/gif"),
        (make_image("WEBP"), "", "image/webp"),
        (SVG, "image/png", "image/svg+xml"),
        (SVG, "text/html", "image/svg+xml"),
        (make_image("GIF") + b"<script>alert(1)</script>", "text/html", "image/gif"),
    ],
    ids=["PNG", "JPEG", "GIF", "WebP", "SVG as PNG", "SVG as HTML", "GIF with a script behind it"],
)
async def test_image_is_stored_under_its_own_type(
    imgkeep: Imgkeep, origin: FakeOrigin, body: bytes, called: str, media_type: str
) -> None:
    url = origin.gives("/a", body, headers={"Content-Type": called})
    for _ in range(2):
        seen = await look(imgkeep, url)
        assert (seen.status, seen.body, seen.headers["Content-Type"]) == (200, body, media_type)
        assert seen.headers["X-Content-Type-Options"] == "nosniff"
        policy = seen.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "sandbox" in policy
        assert "allow-" not in policy


# O9: redirects. Those to refused addresses: test_address_guard.py.


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_every_kind_of_redirect_is_followed(imgkeep: Imgkeep, origin: FakeOrigin, status: str) -> None:
    origin.gives("/b.png", make_image())
    url = origin.gives("/a.png", b"go there", status=status, headers={"Location": "/b.png"})
    seen = await look(imgkeep, url)
    assert (seen.status, seen.body) == (200, make_image())


@pytest.mark.parametrize("status", ["300 Multiple Choices", "304 Not Modified", "305 Use Proxy", "306 Unused"])
async def test_other_status_with_a_location_is_not_followed(imgkeep: Imgkeep, origin: FakeOrigin, status: str) -> None:
    origin.gives("/b.png", make_image())
    url = origin.gives("/a.png", b"", status=status, headers={"Location": "/b.png"})
    seen = await look(imgkeep, url)
    assert (seen.status, seen.code, origin.asked("/b.png")) == (502, "origin_error", 0)


@pytest.mark.parametrize("headers", [{}, {"Location": ""}], ids=["without Location", "with an empty one"])
async def test_image_with_a_redirect_to_nowhere_is_stored(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests, headers: dict[str, str]
) -> None:
    for number, status in enumerate((301, 302, 303, 307, 308), 1):
        with subtests.test(status=status):
            url = origin.gives(f"/{status}.png", make_image(), status=f"{status} There", headers=headers)
            seen = await look(imgkeep, url)
            assert (seen.status, seen.body) == (200, make_image())
            assert len(imgkeep.files("records")) == number


@pytest.mark.parametrize("at", [-8, -1], ids=["checksum", "size"])
async def test_whole_image_with_a_wrong_gzip_trailer_is_stored(imgkeep: Imgkeep, origin: FakeOrigin, at: int) -> None:
    for number, (body, status) in enumerate(((make_image(), 200), (make_image()[:-20], 0))):
        data = bytearray(gzip.compress(body))
        data[at] ^= 1
        url = origin.gives(f"/{number}.png", bytes(data), headers={"Content-Encoding": "gzip"})
        seen = await look(imgkeep, url)
        assert seen.broken if status == 0 else (seen.status, seen.body) == (200, body)
    assert len(imgkeep.files("records")) == 1


async def test_endless_redirects_are_not_retried(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"redirects_max": 3, "retries_max": 2})
    url = origin.gives("/a.png", b"", status="302 Found", headers={"Location": "/a.png?again"})
    seen = await look(imgkeep, url)
    assert (seen.status, seen.code) == (502, "origin_error")
    assert origin.asked("/a.png") == 4
    await nothing_kept(imgkeep)


async def test_redirects_up_to_the_limit_are_followed(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"redirects_max": 3})
    for number in range(3):
        origin.gives(f"/{number}", b"", status="302 Found", headers={"Location": f"/{number + 1}"})
    origin.gives("/3", make_image())
    assert (await look(imgkeep, origin.url("/0"))).status == 200


@pytest.mark.parametrize("headers", [{}, {"Location": ""}, {"Location": " "}], ids=["none", "empty", "blank"])
async def test_redirect_to_nowhere_fails_at_once(
    start: StartImgkeep, origin: FakeOrigin, headers: dict[str, str]
) -> None:
    imgkeep = await start(fetch={"retries_max": 2})
    url = origin.gives("/a.png", b"", status="302 Found", headers=headers)
    seen = await look(imgkeep, url)
    assert (seen.status, seen.code, origin.asked("/a.png")) == (502, "origin_error", 1)


@pytest.mark.parametrize("location", ["/c d.png", "/c%20d.png", "c%20d.png", "./x/../c%20d.png", "?q#f"])
async def test_location_is_relative_to_the_redirecting_url(imgkeep: Imgkeep, origin: FakeOrigin, location: str) -> None:
    async def script(exchange: Exchange) -> None:
        if "?" in exchange.target:
            await exchange.answer(make_image())
        else:
            await exchange.answer(b"", status="302 Found", headers={"Location": location})

    origin.gives("/c%20d.png", make_image())
    assert (await look(imgkeep, origin.on("/a.png", script))).status == 200


# O10: what an origin says, and for how long it is believed.

SAID = {
    # status: what the client gets, its code, seconds remembered
    "401 Unauthorized": (502, "origin_refused", 60),
    "403 Forbidden": (502, "origin_refused", 60),
    "404 Not Found": (404, "source_not_found", 120),
    "410 Gone": (404, "source_not_found", 120),
    "400 Bad Request": (502, "origin_error", 5),
    "418 I'm a teapot": (502, "origin_error", 5),
    "500 Internal Server Error": (502, "origin_error", 5),
    "502 Bad Gateway": (502, "origin_error", 5),
    "503 Service Unavailable": (502, "origin_error", 5),
    "429 Too Many Requests": (502, "origin_error", 5),
    "204 No Content": (502, "origin_error", 5),
    "999 Denied": (502, "origin_error", 5),
}


@pytest.mark.parametrize("said", SAID)
async def test_refusal_is_remembered_for_its_time(start: StartImgkeep, origin: FakeOrigin, said: str) -> None:
    timer = Timer()
    imgkeep = await start(platform=Platform(timer=timer))
    status, code, seconds = SAID[said]
    url = origin.gives("/a.png", b"" if said[:3] == "204" else make_image(), status=said)
    first = await look(imgkeep, url)
    assert (first.status, first.code, first.headers["Cache-Control"]) == (status, code, "no-store")
    assert first.headers["Cache-Status"] == f"imgkeep; fwd=uri-miss; fwd-status={said[:3]}"
    origin.gives("/a.png", make_image())
    timer.seconds += seconds - 1
    remembered = await look(imgkeep, url)
    assert (remembered.status, remembered.code, origin.asked("/a.png")) == (status, code, 1)
    # Another link to the same place is not the same link.
    assert (await look(imgkeep, url + "?fresh")).status == 200
    timer.seconds += 2
    assert (await look(imgkeep, url)).body == make_image()
    assert len(imgkeep.files("records")) == 2


RETRY_AFTER = {
    "seconds": ("30", 30),
    "a date": ("Sun, 22 Nov 2026 10:00:30 GMT", 30),
    "too long": ("999999", 3600),
    "a date too far": ("Sun, 22 Nov 2099 10:00:30 GMT", 3600),
}


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize(("value", "seconds"), RETRY_AFTER.values(), ids=RETRY_AFTER.keys())
async def test_retry_after_is_respected_and_passed_on(
    start: StartImgkeep, origin: FakeOrigin, status: str, value: str, seconds: int
) -> None:
    timer = Timer()
    platform = Platform(timer=timer, clock=lambda: datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC))
    imgkeep = await start(platform=platform, fetch={"retries_max": 2})
    url = origin.gives("/a.png", b"slow down", status=status, headers={"Retry-After": value})
    first = await look(imgkeep, url)
    # It is longer than a client should wait for an answer, so no attempt is made meanwhile.
    assert (first.status, first.headers["Retry-After"], origin.asked("/a.png")) == (502, str(seconds), 1)
    origin.gives("/a.png", make_image())
    # Only for 429: a server error is over when it is over.
    # And for no longer than a minute, since another client's request may have provoked it.
    timer.seconds += (min(seconds, TOO_MANY_REQUESTS_S) if status.startswith("429") else SERVER_ERROR_S) - 1
    assert (await look(imgkeep, url)).status == 502
    timer.seconds += 2
    assert (await look(imgkeep, url)).status == 200
    assert origin.asked("/a.png") == 2


async def test_stored_image_outlives_later_errors(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    await look(imgkeep, url)
    origin.gives("/a.png", b"gone", status="410 Gone")
    assert (await look(imgkeep, url)).body == make_image()
    assert origin.asked("/a.png") == 1


# Another attempt.

PASSING: dict[str, Any] = {
    "500": "500 Internal Server Error",
    "502": "502 Bad Gateway",
    "503": "503 Service Unavailable",
    "429": "429 Too Many Requests",
}


@pytest.mark.parametrize("status", PASSING.values(), ids=PASSING.keys())
async def test_passing_failure_is_retried(start: StartImgkeep, origin: FakeOrigin, status: str) -> None:
    imgkeep = await start(fetch={"retries_max": 1})

    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            await exchange.answer(b"", status=status, headers={"Retry-After": "0"})
        else:
            await exchange.answer(make_image())

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.body, origin.asked("/a.png")) == (200, make_image(), 2)
    assert await counted(imgkeep, 'imgkeep_origin_requests_total{outcome="2xx"}') == 1


async def test_connection_that_breaks_before_the_answer_is_retried(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 2})

    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.reset()
        elif exchange.number == 1:
            await exchange.send(b"HTTP/1.1 20")
            exchange.finish()
        else:
            await exchange.answer(make_image())

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.body, origin.asked("/a.png")) == (200, make_image(), 3)


async def test_retries_end_with_retries_max(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 2})
    headers = {"Retry-After": "0"}
    url = origin.gives("/a.png", b"", status="503 Service Unavailable", headers=headers)
    seen = await look(imgkeep, url)
    assert (seen.status, origin.asked("/a.png")) == (502, 3)


async def test_retries_end_with_the_total_timeout(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 10, "total_timeout_s": 0.4, "connect_timeout_s": 0.3})
    url = origin.gives("/a.png", b"", status="500 Internal Server Error")
    async with asyncio.timeout(15):
        seen = await look(imgkeep, url)
    assert (seen.status, seen.code) == (504, "origin_timeout")
    assert origin.asked("/a.png") <= 2


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found", "410 Gone"]
)
async def test_lasting_failure_is_not_retried(start: StartImgkeep, origin: FakeOrigin, status: str) -> None:
    imgkeep = await start(fetch={"retries_max": 2})
    await look(imgkeep, origin.gives("/a.png", b"", status=status))
    assert origin.asked("/a.png") == 1


async def test_broken_body_is_not_retried(start: StartImgkeep, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 2})
    seen = await look(imgkeep, origin.on("/a.png", closing(png_of(5000)[:3000])))
    assert is_no_image(seen)
    assert origin.asked("/a.png") == 1


NOT_HTTP = {
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "HTTP/0.9": make_image(),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + make_image(),
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + make_image(),
    "a head too long": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 600_000 + b"\r\n\r\n" + make_image(),
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 50_000,
    "NUL": b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n" + make_image(),
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_other_protocol_is_an_origin_error(imgkeep: Imgkeep, origin: FakeOrigin, data: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.finish()

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert (seen.status, seen.code) == (502, "origin_error")
    await nothing_kept(imgkeep)
