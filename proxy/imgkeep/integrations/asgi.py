"""
Middleware for ASGI 3 applications: FastAPI, Starlette, Django, Quart, Litestar, and what else speaks it.

    app.add_middleware(Imgkeep, public_url="https://img.example.com")

Rules:
- Every other response passes unchanged, and so do WebSockets and the lifespan.
- The start of a rewritten response waits for the first piece of its body, which usually comes at once.
- A body that the server reads from a file itself (`http.response.pathsend`) stays. The middleware does not offer
  `http.response.zerocopysend`, because it would see too late that a body mixes files with pieces.
- A request for a part of a page gets the whole page: the middleware calls the application again without the range.
- When the application fails, the buffered bytes go out.
- A page that is crafted to be slow does not block the event loop: see `cooperative`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

from imgkeep.integrations import cooperative
from imgkeep.integrations.links import PATH_SAFE, LinkRewriter, img_url
from imgkeep.integrations.response_body import Body, Streamed, Unaltered, Whole
from imgkeep.integrations.responses import DIGESTS, is_part, plan, revalidated, rewritten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping
    from typing import Unpack

    from imgkeep.integrations.links import Options

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    # Frameworks differ in how closely they describe what they take.
    App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ["Imgkeep", "img_url"]

_ZERO_COPY: Final = "http.response.zerocopysend"
_RANGE: Final = frozenset({b"range", b"if-range"})


class Imgkeep:
    """An ASGI application whose pages load their images from imgkeep; see `Options`."""

    def __init__(self, app: App, **options: Unpack[Options]) -> None:
        self._app = app
        self._rewriter = LinkRewriter(**options)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        extensions = scope.get("extensions") or {}
        if _ZERO_COPY in extensions:
            scope = {**scope, "extensions": {name: each for name, each in extensions.items() if name != _ZERO_COPY}}
        whole = _without_range(scope)  # before the application changes the scope
        response = _Response(scope, send, self._rewriter, may_be_part=whole is not None)
        await self._respond(response, scope, receive)
        if response.is_part and whole is not None:
            response = _Response(whole, send, self._rewriter, may_be_part=False)
            await self._respond(response, whole, _receive_again(receive))
        await response.end()

    async def _respond(self, response: _Response, scope: Message, receive: Receive) -> None:
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            await response.abandon()
            raise


class _Response:
    """
    One response. `_held` is its start while that waits, `_body` rewrites its body.

    Attributes:
        is_part: Whether it was a part of a page; then nothing of it has gone out.
    """

    def __init__(self, scope: Message, send: Send, rewriter: LinkRewriter, *, may_be_part: bool) -> None:
        self._scope, self._send, self._rewriter, self._may_be_part = scope, send, rewriter, may_be_part
        self.is_part = False
        self._held: Message | None = None
        self._body: Body | None = None

    async def send(self, message: Message) -> None:
        """Handle a message of the application, as its `send`."""
        if self.is_part:
            return
        kind = message["type"]
        if kind == "http.response.start":
            await self._start(message)
        elif kind == "http.response.body" and self._body is not None:
            await self._pass(self._body, message)
        elif kind == "http.response.trailers" and self._body is not None:
            headers = [(name, value) for name, value in message.get("headers", ()) if _text(name) not in DIGESTS]
            await self._send({**message, "headers": headers})
        else:
            if kind == "http.response.pathsend":
                await self.end()
            await self._send(message)

    async def end(self) -> None:
        """Send the waiting start, if any, unchanged."""
        if self._held is not None:
            held, self._held, self._body = self._held, None, None
            await self._send(held)

    async def abandon(self) -> None:
        """Send the buffered bytes of the body: the application sends no more."""
        if self._body is not None and self._held is None:
            body, self._body = self._body, None
            async for data in cooperative.in_steps(body, body.abandon()):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self, message: Message) -> None:
        headers = [(_text(name), _text(value)) for name, value in message.get("headers", ())]
        status = message["status"]
        self.is_part = self._may_be_part and is_part(self._scope["method"], status, headers)
        if self.is_part:
            return
        planned = plan(self._scope["method"], status, headers)
        if planned is None:
            if status == 304:
                message = {**message, "headers": _raw(revalidated(status, headers, self._header(b"if-none-match")))}
            await self._send(message)
        elif not planned.has_body:
            await self._send({**message, "headers": _raw(rewritten(headers, None))})
        else:
            self._held = message
            self._body = Body(planned, self._rewriter.of_page(self._page_url()))

    async def _pass(self, body: Body, message: Message) -> None:
        data, is_last = bytes(message.get("body", b"")), not message.get("more_body", False)
        if self._held is not None:
            held, self._held = self._held, None
            match await cooperative.begin(body, data, is_last=is_last):
                case Unaltered():
                    self._body = None
                    await self._send(held)
                    await self._send(message)
                    return
                case Whole(whole):
                    await self._send(_with_headers(held, len(whole)))
                    await self._send({**message, "body": whole})
                    return
                case Streamed():
                    await self._send(_with_headers(held, None))
        waiting = b""
        async for piece in cooperative.in_steps(body, body.feed(data)):
            waiting = await self._relay(waiting, piece)
        if is_last:
            async for piece in cooperative.in_steps(body, body.close()):
                waiting = await self._relay(waiting, piece)
        if waiting or is_last:
            await self._send({"type": "http.response.body", "body": waiting, "more_body": not is_last})

    async def _relay(self, waiting: bytes, piece: bytes) -> bytes:
        """Send the waiting piece, because another one follows; return the piece that waits now."""
        if not piece:
            return waiting
        if waiting:
            await self._send({"type": "http.response.body", "body": waiting, "more_body": True})
        return piece

    def _header(self, wanted: bytes) -> str:
        return ", ".join(_text(value) for name, value in self._scope.get("headers", ()) if name.lower() == wanted)

    def _page_url(self) -> str | None:
        scope = self._scope
        root, path = scope.get("root_path", ""), scope["path"]
        path = quote(path if path.startswith(root) else f"{root}{path}", PATH_SAFE, errors="replace")
        query = _text(scope.get("query_string") or b"")
        return self._rewriter.page_url(scope.get("scheme", "http"), self._header(b"host"), path, query)


def _without_range(scope: Message) -> Message | None:
    """Return the scope without its range; `None`: it has none."""
    headers = [(name, value) for name, value in scope.get("headers", ()) if name.lower() not in _RANGE]
    return None if len(headers) == len(scope.get("headers", ())) else {**scope, "headers": headers}


def _receive_again(receive: Receive) -> Receive:
    """Return a `receive` that starts with an empty body, and then continues with `receive`."""
    request: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def give() -> Message:
        return request.pop() if request else await receive()

    return give


def _with_headers(start: Message, length: int | None) -> Message:
    headers = [(_text(name), _text(value)) for name, value in start.get("headers", ())]
    return {**start, "headers": _raw(rewritten(headers, length))}


def _raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _text(value: bytes) -> str:
    return value.decode("latin-1")
