"""What Chromium shows whole is stored, whatever the head in front of it looks like, and bounds hold for all of it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.response_head import FIELDS_MAX
from imgkeep.origin.bounded_connection import HEAD_BYTES_MAX, HEAD_STEP_BYTES, INTERIM_ANSWERS_MAX
from tests.support.browser import browsing
from tests.support.image_requests import fills_done
from tests.support.images import make_image
from tests.support.network import look, nothing_kept
from tests.support.origins import FakeOrigin
from tests.support.response_heads import BODY, CHUNKS, HEADS, LENGTH, OK, OTHER, lines

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from tests.support.origins import Exchange
    from tests.support.response_heads import Head
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

MALFORMED = b"PHP Warning:  Undefined variable $a in /var/www/a.php on line 3"
SHOW = """
(items) => Promise.all(items.map((url) => new Promise((done) => {
  const image = new Image();
  image.onload = () => done(image.naturalWidth > 0);
  image.onerror = () => done(false);
  image.src = url;
})))
"""


def answering(head: Head) -> Callable[[Exchange], Awaitable[None]]:
    async def script(exchange: Exchange) -> None:
        await exchange.send(head.answer)
        if head.closes:
            exchange.finish()

    return script


async def test_image_that_chromium_shows_is_stored(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    for number, (name, head) in enumerate(HEADS.items()):
        with subtests.test(name):
            seen = await look(imgkeep, origin.on(f"/{number}-a.png", answering(head)))
            if is_stored(head):
                assert (seen.status, seen.body) == (200, BODY)
            else:
                assert seen.broken or seen.status in {422, 502}
            # No answer, and nothing behind one, is another request's; and the next one begins on a new connection.
            seen = await look(imgkeep, origin.on(f"/{number}-b.png", give_other))
            assert (seen.status, seen.body) == (200, OTHER)
    await fills_done(imgkeep)
    expected = {
        origin.url(f"/{number}-{letter}.png"): sha256(body).hexdigest()
        for number, head in enumerate(HEADS.values())
        for letter, body in (("a", BODY), ("b", OTHER))
        if letter == "b" or is_stored(head)
    }
    records = [json.loads(file.read_text()) for file in imgkeep.files("records")]
    assert {f"http:{record['identity']}": record["digest"] for record in records} == expected
    assert sorted(file.read_bytes() for file in imgkeep.files("objects")) == sorted([BODY, OTHER])
    assert imgkeep.files("partial") == []


def is_stored(head: Head) -> bool:
    return head.shown if head.stored is None else head.stored


async def give_other(exchange: Exchange) -> None:
    """Answer with another image, and close the connection."""
    await exchange.answer(OTHER, headers={"Connection": "close"})
    exchange.finish()


async def test_chromium_agrees_with_the_table(origin: FakeOrigin) -> None:
    urls = [origin.on(f"/{number}.png", answering(head)) for number, head in enumerate(HEADS.values())]
    async with browsing() as browser:
        page = await browser.new_page()
        await page.goto(origin.gives("/", b"<!doctype html>", headers={"Content-Type": "text/html"}))
        shown = await page.evaluate(SHOW, urls)
    assert dict(zip(HEADS, shown, strict=True)) == {name: head.shown for name, head in HEADS.items()}


IN_PIECES = {
    "malformed line": lines(MALFORMED, LENGTH),
    "length twice, and more": lines(LENGTH, LENGTH) + b"\n",
    "chunked and a length": lines(LENGTH, b"Transfer-Encoding: chunked", body=CHUNKS) + b"\n",
    "chunked, then identity": lines(b"Transfer-Encoding: chunked, identity", body=CHUNKS),
    "chunks with bare line feeds": HEADS["chunks with bare line feeds"].answer,
    "chunks with a trailer that is none": HEADS["chunks with a trailer that is none"].answer,
    "line feeds": b"\r\n" + lines(MALFORMED, LENGTH, end=b"\n"),
    "malformed behind interim": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + lines(MALFORMED, LENGTH),
    "malformed interim": b"HTTP/1.1 103 Early Hints\r\nLink  a\r\n\r\n" + lines(MALFORMED, LENGTH),
}


@pytest.mark.parametrize("size", [1, 2, 7, HEAD_STEP_BYTES - 1])
async def test_head_may_come_in_any_pieces(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests, size: int
) -> None:
    for number, (name, answer) in enumerate(IN_PIECES.items()):

        async def script(exchange: Exchange, answer: bytes = answer) -> None:
            for at in range(0, len(answer), size):
                exchange.writer.write(answer[at : at + size])
                await asyncio.sleep(0)

        with subtests.test(name):
            seen = await look(imgkeep, origin.on(f"/{number}.png", script))
            assert (seen.status, seen.body) == (200, BODY)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lines(MALFORMED, LENGTH), id="malformed line"),
        pytest.param(lines(LENGTH, b"Transfer-Encoding: chunked", body=CHUNKS), id="chunked and a length"),
        pytest.param(lines(LENGTH) + b"\n", id="more behind the body"),
        pytest.param(lines(b"Transfer-Encoding: chunked", body=CHUNKS) + b"\n", id="more behind chunks"),
        pytest.param(lines(LENGTH) + lines(b"Transfer-Encoding: chunked", body=b"9\r\nabc"), id="chunks behind it"),
        pytest.param(
            lines(b"Transfer-Encoding: chunked", body=CHUNKS) + lines(b"Transfer-Encoding: chunked", body=CHUNKS),
            id="two chunked answers",
        ),
    ],
)
async def test_connection_with_a_repaired_head_is_not_reused(
    imgkeep: Imgkeep, origin: FakeOrigin, answer: bytes
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer)

    assert (await look(imgkeep, origin.on("/a.png", script))).body == BODY
    assert (await look(imgkeep, origin.gives("/b.png", make_image(seed=2)))).body == make_image(seed=2)
    assert origin.connections == 2


@pytest.mark.parametrize("name", ["plain", "chunked", "chunks with a trailer"])
async def test_connection_with_a_plain_answer_is_reused(imgkeep: Imgkeep, origin: FakeOrigin, name: str) -> None:
    plain = replace(HEADS[name], closes=False)
    for number in range(3):
        url = origin.on(f"/{number}.png", answering(plain))
        assert (await look(imgkeep, url)).body == BODY
    assert origin.connections == 1


async def test_no_answer_is_refused_at_once(start: Start, origin: FakeOrigin) -> None:
    """The origin keeps the connection open, and no time limit is waited for."""
    imgkeep = await start(fetch={"read_timeout_s": 30, "retries_max": 0})
    for number, data in enumerate((BODY, b"ICY 200 OK\r\n")):

        async def script(exchange: Exchange, data: bytes = data) -> None:
            await exchange.send(data)
            await exchange.gone()

        async with asyncio.timeout(5):
            assert (await look(imgkeep, origin.on(f"/{number}.png", script))).status == 502


async def test_malformed_redirect_is_followed(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(
            lines(MALFORMED, b"Location : /b.png", b"Content-Length: 3", status=b"http/1.1 302", body=b"off")
        )

    origin.gives("/b.png", make_image())
    assert (await look(imgkeep, origin.on("/a.png", script))).body == make_image()


# --- bounds


@asynccontextmanager
async def flooded(answer: bytes) -> AsyncGenerator[str]:
    """Serve an answer whole to each request."""
    fake = FakeOrigin()
    await fake.start()

    async def script(exchange: Exchange) -> None:
        await exchange.send(answer)
        await exchange.gone()

    yield fake.on("/a.png", script)
    await fake.stop()


FLOODS: dict[str, bytes] = {
    "malformed lines": b"\r\n".join([OK, *[b"a b"] * (HEAD_BYTES_MAX // 5), b"", b""]),
    "malformed lines without end": b"\r\n".join([OK, *[b"a b"] * (HEAD_BYTES_MAX // 2)]),
    "folds": b"\r\n".join([OK, b"a b: c", b"X-A: b", *[b" c"] * (HEAD_BYTES_MAX // 4), LENGTH, b"", b""]),
    "fields": b"\r\n".join([OK, b"a b", *[b"a:"] * (HEAD_BYTES_MAX // 4), b"", b""]),
    "carriage returns": OK + b"\r\na b\r\n" + b"\r" * HEAD_BYTES_MAX + b"\n\r\n",
    "lengths in a list": lines(b"a b", b"Content-Length: " + b"5," * (HEAD_BYTES_MAX // 4), body=b""),
    "codings in a list": lines(b"Transfer-Encoding: " + b"x," * (HEAD_BYTES_MAX // 4), body=b""),
    "malformed interim answers": b"HTTP/1.1 103 x\r\na b\r\n\r\n" * (HEAD_BYTES_MAX // 24),
    "short interim answers behind a malformed one": b"HTTP/1.1 103 x\r\na b\r\n\r\n" + b"HTTP/1.1 103 \n\n" * 10_000,
    "status digits": b"HTTP/1.1 " + b"9" * (HEAD_BYTES_MAX // 2) + b"\r\n\r\n",
    "spaces before the status": b"HTTP/1.1" + b" " * (HEAD_BYTES_MAX // 2) + b"\r\na b\r\n\r\n",
    "white space in a name": lines(b"a" + b" " * (HEAD_BYTES_MAX // 2) + b"b: c", body=b""),
}


@pytest.mark.parametrize("answer", FLOODS.values(), ids=FLOODS.keys())
async def test_flood_of_repaired_heads_holds_no_loop_iteration(start: Start, answer: bytes) -> None:
    imgkeep = await start(fetch={"read_timeout_s": 1, "retries_max": 0})
    longest, last = 0.0, time.thread_time()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    async with flooded(answer) as url:
        watching = asyncio.create_task(watch())
        seen = await look(imgkeep, url)
        watching.cancel()
    assert seen.status in {422, 502, 504}
    await nothing_kept(imgkeep)
    assert longest < 0.25, "a generous bound of processor time: a turn takes a few milliseconds"


async def test_repaired_interim_answers_are_counted(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    for number in (INTERIM_ANSWERS_MAX, INTERIM_ANSWERS_MAX + 1):

        async def script(exchange: Exchange, number: int = number) -> None:
            await exchange.send(b"HTTP/1.1 103 x\r\na b\r\n\r\n" * number + lines(LENGTH))

        seen = await look(imgkeep, origin.on(f"/{number}.png", script))
        assert seen.status == (200 if number == INTERIM_ANSWERS_MAX else 502)


async def test_fields_of_repaired_heads_are_counted(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    for number, more in enumerate(([], [b"a b"])):
        fields = [b"X-A: b"] * (FIELDS_MAX - 2)
        for count, status in ((0, 200), (8, 502)):

            async def script(
                exchange: Exchange, data: bytes = lines(*fields, *[b"X: y"] * count, *more, LENGTH)
            ) -> None:
                await exchange.send(data)

            assert (await look(imgkeep, origin.on(f"/{number}{count}.png", script))).status == status
