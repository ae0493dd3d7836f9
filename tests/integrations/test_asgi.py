"""The ASGI middleware against the specification, message by message, and under Starlette."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.middleware.gzip import GZipMiddleware

from imgkeep.integrations.asgi import Imgkeep
from tests.support.asgi_messages import body_of
from tests.support.pages import PAGE, PLAIN, WANTED

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


async def test_header_names_become_lower_case() -> None:
    sent = await ask(says(start((b"Content-Length", b"%d" % len(PAGE)), (b"ETag", b'"a"')), part(PAGE)))
    assert sent == [start((b"content-length", b"%d" % len(WANTED)), (b"etag", b'W/"a"')), part(WANTED)]


async def test_start_goes_out_with_the_first_piece() -> None:
    sent = await ask(says(start(), part(b"<img ", more=True), part(b"")))
    assert sent == [start(), part(b"<img ")]


async def test_pathsend_is_not_touched() -> None:
    messages = [start((b"content-length", b"9")), {"type": "http.response.pathsend", "path": "/a.html"}]
    assert await ask(says(*messages), extensions={"http.response.pathsend": {}}) == messages


async def test_zerocopysend_is_not_offered() -> None:
    seen: list[Any] = []

    async def app(scope: Any, _receive: Receive, send: Send) -> None:
        seen.append(scope["extensions"])
        await send(start())
        await send(part(PAGE))

    offered: dict[str, Any] = {"http.response.zerocopysend": {}, "tls": {}}
    assert (await ask(app, extensions=offered))[1] == part(WANTED)
    assert seen == [{"tls": {}}]
    assert "http.response.zerocopysend" in offered


async def test_trailers_lose_digests() -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"server-timing", b"a")], "more_trailers": False}
    reply = {**trailers, "headers": [(b"server-timing", b"a"), (b"repr-digest", b"x")]}
    assert await ask(says(start(trailers=True), part(PAGE), reply)) == [start(trailers=True), part(WANTED), trailers]


async def test_other_messages_pass() -> None:
    hint = {"type": "http.response.early_hint", "links": []}
    debug = {"type": "http.response.debug", "info": {}}
    push = {"type": "http.response.push", "path": "/a", "headers": []}
    sent = await ask(says(hint, debug, start(), push, part(PAGE)))
    assert sent == [hint, debug, push, start(), part(WANTED)]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_scopes_pass(kind: str) -> None:
    messages = [{"type": f"{kind}.anything", "body": PAGE}, start(), part(PAGE)]
    assert await ask(says(*messages), type=kind) == messages


async def test_start_without_a_body_is_sent() -> None:
    assert await ask(says(start())) == [start()]


async def test_error_after_the_start_leaves_room_for_an_error_page() -> None:
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
        ({"root_path": "/r", "path": "/r/x/y"}, b"http%3A%2F%2Fh.example%2Fr%2Fx%2Fa.png"),
        ({"root_path": "/r", "path": "/x/y"}, b"http%3A%2F%2Fh.example%2Fr%2Fx%2Fa.png"),
        ({"scheme": "https", "query_string": b"/q/"}, b"https%3A%2F%2Fh.example%2Fa.png"),
    ],
)
async def test_relative_link_uses_the_mount_path(scope: dict[str, Any], wanted: bytes) -> None:
    sent = await ask(says(start(), part(b"<img src='a.png'>")), headers=[(b"host", b"h.example")], **scope)
    assert sent[1]["body"] == b"<img src='https://k.example/img?src=" + wanted + b"'>"


async def test_surrogate_in_the_path_is_accepted() -> None:
    headers = [(b"host", b"s.example")]
    sent = await ask(says(start(), part(b"<img src='https://h.example/a.png'>")), path="/\ud800", headers=headers)
    assert b"k.example" in sent[1]["body"]


@pytest.mark.parametrize("header", [HTML, (b"content-type", b"text/html")])
async def test_failing_application_announces_more_body(header: tuple[bytes, bytes]) -> None:
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


async def test_second_request_for_the_whole_page_has_no_body() -> None:
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


async def test_relative_link_without_a_host_stays() -> None:
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
