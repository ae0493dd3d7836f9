"""The ASGI middleware against the specification, message by message, and under Starlette."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from imgkeep.integrations.asgi import Imgkeep
from imgkeep.integrations.response_body import CutShort
from starlette.middleware.gzip import GZipMiddleware

from tests.support.asgi_messages import body_of
from tests.support.pages import LINK, PAGE, PLAIN, WANTED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping

    from imgkeep.integrations.asgi import App, Message, Receive, Send

HTML = (b"content-type", b"text/html; charset=utf-8")
OPTIONS: Any = {"public_url": "https://k.example", "which": ["h.example"]}


def start(*headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [HTML, *headers], **more}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _silent() -> Message:
    return {"type": "http.disconnect"}


async def ask(app: App, *, wrap: bool = True, **scope: Any) -> list[MutableMapping[str, Any]]:
    """Send one request; return the messages of the answer."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: Message) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], **scope}
    await (Imgkeep(app, **OPTIONS) if wrap else app)(whole, _silent, send)
    return sent


def says(*messages: dict[str, Any]) -> App:
    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def test_a_whole_page_keeps_a_length() -> None:
    sent = await ask(says(start((b"Content-Length", b"%d" % len(PAGE)), (b"ETag", b'"a"')), part(PAGE)))
    assert sent == [start((b"content-length", b"%d" % len(WANTED)), (b"etag", b'W/"a"')), part(WANTED)]


async def test_a_length_that_was_not_told_is_not_told() -> None:
    assert await ask(says(start(), part(PAGE))) == [start(), part(WANTED)]


async def test_a_page_in_pieces_has_no_length() -> None:
    sent = await ask(says(start((b"content-length", b"%d" % len(PAGE))), part(PAGE[:60], more=True), part(PAGE[60:])))
    assert sent[0] == start()
    assert body_of(sent) == WANTED


async def test_each_piece_goes_out_before_the_next_is_made() -> None:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await send(start())
        for number in range(3):
            await send(part(f"<p>{number}<img src='{LINK}'><i".encode(), more=True))
            assert len(sent) == number + 2
            assert f"<p>{number}<img src='https://k.example/".encode() in sent[-1]["body"]
        await send(part(b""))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await Imgkeep(app, **OPTIONS)(scope, _silent, send)
    assert sent[-1] == part(b"<i")


async def test_a_start_goes_out_with_the_first_piece_though_that_waits() -> None:
    sent = await ask(says(start(), part(b"<img ", more=True), part(b"")))
    assert sent == [start(), part(b"<img ")]


async def test_packed_pages_are_packed_again() -> None:
    packed = gzip.compress(PAGE)
    headers = ((b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(packed)))
    whole = await ask(says(start(*headers), part(packed)))
    assert gzip.decompress(whole[1]["body"]) == WANTED
    assert dict(whole[0]["headers"])[b"content-length"] == b"%d" % len(whole[1]["body"])
    pieces = await ask(
        says(start(*headers), *(part(packed[at : at + 9], more=True) for at in range(0, 500, 9)), part(b""))
    )
    assert gzip.decompress(body_of(pieces)) == WANTED


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-encoding", b"br")],
        [(b"cache-control", b"no-transform")],
        [(b"content-length", b"3")],
    ],
    ids=str,
)
async def test_what_is_left_alone_is_not_touched(headers: list[tuple[bytes, bytes]]) -> None:
    messages = [start(*headers, (b"ETag", b'"a"'), (b"accept-ranges", b"bytes")), part(PAGE)]
    assert await ask(says(*messages)) == messages


async def test_head_tells_what_is_sure() -> None:
    app = says(start((b"content-length", b"%d" % len(PAGE)), (b"etag", b'"a"')), part(b""))
    assert await ask(app, method="HEAD") == [start((b"etag", b'W/"a"')), part(b"")]


async def test_not_modified_calls_the_page_as_its_client_does() -> None:
    app = says({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"a"')]}, part(b""))
    sent = await ask(app, headers=[(b"if-none-match", b'W/"a"')])
    assert sent[0]["headers"] == [(b"etag", b'W/"a"')]


async def test_a_page_that_is_cut_short_does_not_look_whole() -> None:
    with pytest.raises(CutShort):
        await ask(says(start((b"content-length", b"500")), part(PAGE, more=True), part(b"")))


async def test_files_that_the_server_reads_are_left_alone() -> None:
    messages = [start((b"content-length", b"9")), {"type": "http.response.pathsend", "path": "/a.html"}]
    assert await ask(says(*messages), extensions={"http.response.pathsend": {}}) == messages


async def test_parts_of_files_are_not_offered() -> None:
    seen: list[Any] = []

    async def app(scope: Any, _receive: Receive, send: Send) -> None:
        seen.append(scope["extensions"])
        await send(start())
        await send(part(PAGE))

    offered: dict[str, Any] = {"http.response.zerocopysend": {}, "tls": {}}
    assert (await ask(app, extensions=offered))[1] == part(WANTED)
    assert seen == [{"tls": {}}]
    assert "http.response.zerocopysend" in offered


async def test_trailers_stay_but_for_digests() -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"server-timing", b"a")], "more_trailers": False}
    told = {**trailers, "headers": [(b"server-timing", b"a"), (b"repr-digest", b"x")]}
    assert await ask(says(start(trailers=True), part(PAGE), told)) == [start(trailers=True), part(WANTED), trailers]


async def test_other_messages_pass() -> None:
    hint = {"type": "http.response.early_hint", "links": []}
    debug = {"type": "http.response.debug", "info": {}}
    push = {"type": "http.response.push", "path": "/a", "headers": []}
    sent = await ask(says(hint, debug, start(), push, part(PAGE)))
    assert sent == [hint, debug, push, start(), part(WANTED)]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_what_is_no_request_passes(kind: str) -> None:
    messages = [{"type": f"{kind}.anything", "body": PAGE}, start(), part(PAGE)]
    assert await ask(says(*messages), type=kind) == messages


async def test_a_start_without_a_body_is_told() -> None:
    assert await ask(says(start())) == [start()]


async def test_an_error_behind_the_start_leaves_room_for_a_page_about_it() -> None:
    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await send(start())
        raise LookupError

    async def with_page(scope: Any, receive: Receive, send: Send) -> None:
        try:
            await Imgkeep(app, **OPTIONS)(scope, receive, send)
        except LookupError:
            await send(start(status=500))
            await send(part(b"sorry"))

    assert await ask(with_page, wrap=False) == [start(status=500), part(b"sorry")]


@pytest.mark.parametrize(
    ("scope", "wanted"),
    [
        ({}, b"http%3A%2F%2Fh.example%2Fa.png"),
        ({"root_path": "/r", "path": "/r/x/y"}, b"http%3A%2F%2Fh.example%2Fr%2Fx%2Fa.png"),
        ({"root_path": "/r", "path": "/x/y"}, b"http%3A%2F%2Fh.example%2Fr%2Fx%2Fa.png"),
        ({"scheme": "https", "query_string": b"/q/"}, b"https%3A%2F%2Fh.example%2Fa.png"),
    ],
)
async def test_relative_links_are_the_sites(scope: dict[str, Any], wanted: bytes) -> None:
    sent = await ask(says(start(), part(b"<img src='a.png'>")), headers=[(b"host", b"h.example")], **scope)
    assert sent[1]["body"] == b"<img src='https://k.example/img?src=" + wanted + b"'>"


async def test_a_path_that_is_no_text_breaks_nothing() -> None:
    headers = [(b"host", b"s.example")]
    sent = await ask(says(start(), part(b"<img src='https://h.example/a.png'>")), path="/\ud800", headers=headers)
    assert b"k.example" in sent[1]["body"]


@pytest.mark.parametrize("header", [HTML, (b"content-type", b"text/html")])
async def test_what_was_held_back_goes_out_when_the_application_fails(header: tuple[bytes, bytes]) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [header]})
        await send(part(PAGE, more=True))
        await send(part(b"<p><img src=", more=True))
        raise LookupError("late")

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    with pytest.raises(LookupError, match="late"):
        await Imgkeep(app, **OPTIONS)(scope, _silent, send)
    assert b"".join(message["body"] for message in sent[1:]) == WANTED + b"<p><img src="
    assert all(message["more_body"] for message in sent[1:]), "so that the server breaks off"


async def test_who_asks_for_a_part_of_a_page_gets_the_page() -> None:
    received: list[str] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        received.append((await receive())["type"])
        is_part = any(name == b"range" for name, _ in scope["headers"])
        scope["path"] = "changed"
        if is_part:
            await send(start((b"content-range", b"bytes 40-99/100"), status=206))
            await send(part(PAGE[40:]))
        else:
            await send(start())
            await send(part(PAGE[:60], more=True))
            await send(part(PAGE[60:]))

    sent = await ask(app, headers=[(b"range", b"bytes=40-"), (b"if-range", b"x")])
    assert sent[0] == start()
    assert body_of(sent) == WANTED
    assert received == ["http.disconnect", "http.request"]


async def test_parts_of_what_is_no_page_stay_parts() -> None:
    messages = [
        {"type": "http.response.start", "status": 206, "headers": [(b"content-type", b"video/mp4")]},
        part(b"0123456789"),
    ]
    assert await ask(says(*messages), headers=[(b"range", b"bytes=40-")]) == messages


async def test_without_a_host_relative_links_stay() -> None:
    assert (await ask(says(start(), part(b"<img src='a.png'>"))))[1] == part(b"<img src='a.png'>")


@pytest.mark.parametrize("packs", [False, True])
async def test_fastapi(*, packs: bool) -> None:
    app = FastAPI()
    if packs:
        app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(Imgkeep, **OPTIONS)

    @app.get("/page", response_class=HTMLResponse)
    def page() -> bytes:
        return PAGE

    @app.get("/streamed")
    def streamed() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield PAGE[:50]
            yield PAGE[50:]

        return StreamingResponse(pieces(), media_type="text/html")

    @app.get("/plain", response_class=HTMLResponse)
    def plain() -> bytes:
        return PLAIN

    for path, wanted in (("/page", WANTED), ("/streamed", WANTED), ("/plain", PLAIN)):
        sent = await ask(app, wrap=False, path=path, headers=[(b"accept-encoding", b"gzip")])
        sent = [message for message in sent if message["type"] != "http.response.debug"]
        body = b"".join(message["body"] for message in sent[1:])
        headers = dict(sent[0]["headers"])
        assert (headers.get(b"content-encoding") == b"gzip") == packs
        assert (gzip.decompress(body) if packs else body) == wanted
        assert headers.get(b"content-length") == (None if path == "/streamed" else b"%d" % len(body))
