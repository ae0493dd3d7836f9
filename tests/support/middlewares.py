"""The three middlewares behind one interface: an application's reply goes in, the server's view of it comes out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings

from imgkeep.integrations import asgi, wsgi
from imgkeep.integrations.django import ImgkeepMiddleware
from tests.support import django_settings
from tests.support.pages import OPTIONS
from tests.support.wsgi_server import WsgiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

django_settings.configure()

PHRASES: Final = {200: "OK", 206: "Partial Content", 304: "Not Modified"}


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request; `headers` have the spelling of HTTP."""

    method: str = "GET"
    scheme: str = "http"
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def has_range(self) -> bool:
        return "Range" in self.headers


@dataclass(slots=True)
class Reply:
    """
    An application's reply.

    Attributes:
        pieces: Pieces of the body; a list of one is a whole body.
        streams: Whether the application makes the pieces one by one.
        error: Exception that the application raises behind the last piece.
        made: Numbers of the pieces that the application has made so far.
    """

    pieces: list[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    streams: bool = False
    error: Exception | None = None
    made: list[int] = field(default_factory=list)

    def iterate(self) -> Iterator[bytes]:
        for number, piece in enumerate(self.pieces):
            self.made.append(number)
            yield piece
        if self.error is not None:
            raise self.error


@dataclass(slots=True)
class Received:
    """
    The response as the server gets it.

    Attributes:
        headers: Fields by their names in small letters.
        made: Number of pieces that the application had made, for each piece that came.
        error: Exception that broke the response off.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    error: Exception | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def take(self, piece: bytes, reply: Reply) -> None:
        if piece:
            self.pieces.append(piece)
            self.made.append(len(reply.made))


def _lowered(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def through_wsgi(request: Request, answer: Callable[[Request], Reply]) -> Received:
    """Send a request through the WSGI middleware."""
    received, replies = Received(), []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        names = {"Range": "HTTP_RANGE", "If-None-Match": "HTTP_IF_NONE_MATCH"}
        headers = {name: environ[key] for name, key in names.items() if key in environ}
        reply = answer(Request(request.method, request.scheme, request.path, headers))
        replies.append(reply)
        start_response(f"{reply.status} {PHRASES[reply.status]}", list(reply.headers.items()))
        return reply.iterate() if reply.streams else list(reply.iterate())

    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()}
    environ |= {"REQUEST_METHOD": request.method, "PATH_INFO": request.path, "wsgi.url_scheme": request.scheme}
    server = WsgiServer(wsgi.Imgkeep(app, **_options()), **environ)
    try:
        for piece in server.result:
            received.take(piece, replies[-1])
    except Exception as error:  # noqa: BLE001 - the tests look at it
        received.error = error
    received.status = int(server.told[-1][0][:3])
    received.headers = _lowered(server.headers.items())
    return received


def through_asgi(request: Request, answer: Callable[[Request], Reply]) -> Received:
    """Send a request through the ASGI middleware."""
    received, replies = Received(), []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        headers = {name.decode().title(): value.decode() for name, value in scope["headers"]}
        reply = answer(Request(request.method, request.scheme, request.path, headers))
        replies.append(reply)
        fields = [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": fields})
        if reply.streams:
            for piece in reply.iterate():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send({"type": "http.response.body", "body": b"".join(reply.iterate()), "more_body": False})

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            received.status = message["status"]
            received.headers = _lowered((name.decode(), value.decode()) for name, value in message["headers"])
        else:
            received.take(message["body"], replies[-1])

    scope = {
        "type": "http",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in request.headers.items()],
    }
    try:
        asyncio.run(asgi.Imgkeep(app, **_options())(scope, receive, send))
    except Exception as error:  # noqa: BLE001 - the tests look at it
        received.error = error
    return received


def _django_request(request: Request) -> HttpRequest:
    made = HttpRequest()
    made.method, made.path = request.method, request.path
    made.META = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()}
    made._get_scheme = lambda: request.scheme  # type: ignore[attr-defined] # handlers override it
    return made


def _django_request_of(made: HttpRequest, request: Request) -> Request:
    return Request(request.method, request.scheme, request.path, dict(made.headers))


def through_django(request: Request, answer: Callable[[Request], Reply]) -> Received:
    """Send a request through the middleware for Django in a synchronous chain."""
    received, replies = Received(), []

    def view(made: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        reply = answer(_django_request_of(made, request))
        replies.append(reply)
        if reply.streams:
            return StreamingHttpResponse(reply.iterate(), status=reply.status, headers=reply.headers)
        return HttpResponse(b"".join(reply.iterate()), status=reply.status, headers=reply.headers)

    with override_settings(IMGKEEP=_options()):
        response: Any = ImgkeepMiddleware(view)(_django_request(request))
        received.status, received.headers = response.status_code, _lowered(response.items())
        try:
            for piece in response:
                received.take(piece, replies[-1])
        except Exception as error:  # noqa: BLE001 - the tests look at it
            received.error = error
    return received


def through_async_django(request: Request, answer: Callable[[Request], Reply]) -> Received:
    """Send a request through the middleware for Django in an asynchronous chain."""
    received, replies = Received(), []

    async def pieces(reply: Reply) -> AsyncIterator[bytes]:
        for piece in reply.iterate():
            yield piece

    async def view(made: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        reply = answer(_django_request_of(made, request))
        replies.append(reply)
        if reply.streams:
            return StreamingHttpResponse(pieces(reply), status=reply.status, headers=reply.headers)
        return HttpResponse(b"".join(reply.iterate()), status=reply.status, headers=reply.headers)

    async def run() -> None:
        response: Any = await ImgkeepMiddleware(view)(_django_request(request))  # type: ignore[misc]
        received.status, received.headers = response.status_code, _lowered(response.items())
        try:
            if response.streaming:
                async for piece in response.streaming_content:
                    received.take(piece, replies[-1])
            else:
                received.take(response.content, replies[-1])
        except Exception as error:  # noqa: BLE001 - the tests look at it
            received.error = error

    with override_settings(IMGKEEP=_options()):
        asyncio.run(run())
    return received


def _options() -> Any:
    return dict(OPTIONS)
