"""
Middleware for WSGI applications (PEP 3333): Flask, Django, Bottle, Pyramid, and what else speaks it.

    app.wsgi_app = Imgkeep(app.wsgi_app, public_url="https://img.example.com")

Rules:
- Every other response passes unchanged with its iterable, so servers can still send files and count lists.
- The call of `start_response` for a rewritten response waits for the first piece of its body. The middleware yields one
  piece, maybe empty, for each of the application's; bytes that the application writes go out at once.
- Closing our iterable closes the application's.
- A request for a part of a page gets the whole page: the middleware calls the application again without the range.
- When the application fails, the buffered bytes go out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from imgkeep.integrations.links import PATH_SAFE, LinkRewriter, img_url
from imgkeep.integrations.response_body import Body, Streamed, Unaltered, Whole
from imgkeep.integrations.responses import is_part, plan, revalidated, rewritten

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Unpack
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from imgkeep.integrations.links import Options

    Write = Callable[[bytes], object]

__all__ = ["Imgkeep", "img_url"]

_RANGE: Final = frozenset({"HTTP_RANGE", "HTTP_IF_RANGE"})


class Imgkeep:
    """A WSGI application whose pages load their images from imgkeep; see `Options`."""

    def __init__(self, app: WSGIApplication, **options: Unpack[Options]) -> None:
        self._app = app
        self._rewriter = LinkRewriter(**options)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = _Response(environ, start_response, self._rewriter)
        if "HTTP_RANGE" in environ:  # before the application changes the environ
            whole = {name: value for name, value in environ.items() if name not in _RANGE}
            response.ask_whole = lambda: self._app(whole, response.start)
        return response.wrap(self._app(environ, response.start))


class _Response:
    """
    One response.

    `_held` is the start of the response while that waits; `_body` rewrites the body, unless that stays. `ask_whole`
    calls the application again for the whole page.
    """

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse, rewriter: LinkRewriter) -> None:
        self._environ, self._start_response, self._rewriter = environ, start_response, rewriter
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._body: Body | None = None
        self._is_started = False
        self._is_head = False
        self._is_part = False
        self._server_write: Write | None = None
        self.ask_whole: Callable[[], Iterable[bytes]] | None = None

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Write:
        """Handle the start of a response, as the application's `start_response`."""
        if self._is_started and exc_info is None:
            raise AssertionError("start_response was called again without exc_info")
        was_told = self._server_write is not None
        self._is_started, self._held, self._body = True, None, None
        if was_told:
            # The server raises the error if bytes have gone out, else this response replaces the first one.
            return self._pass_on(status, headers, exc_info)
        code = int(status[:3]) if status[:3].isdigit() else 0
        method = self._environ.get("REQUEST_METHOD", "")
        if self.ask_whole is not None and is_part(method, code, headers):
            self._is_part = True
            return lambda _: None
        planned = plan(method, code, headers)
        if planned is None:
            if_none_match = self._environ.get("HTTP_IF_NONE_MATCH", "")
            return self._pass_on(status, revalidated(code, headers, if_none_match), exc_info)
        if not planned.has_body:
            self._is_head = True
            return self._pass_on(status, rewritten(headers, None), exc_info)
        self._held = status, list(headers)
        self._body = Body(planned, self._rewriter.of_page(self._page_url()))
        return self._write

    def wrap(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """Return the iterable for the server in the place of the application's."""
        if self._is_part and self.ask_whole is not None:
            _close(pieces)
            ask_whole, self.ask_whole = self.ask_whole, None
            self._is_started = self._is_part = False
            return self.wrap(ask_whole())
        if self._is_started and self._body is None and not self._is_head:
            return pieces
        if isinstance(pieces, (list, tuple)) and self._held is not None:
            # The body is complete. A list has a length, which servers send if the application does not.
            return list(self._push(b"".join(pieces), is_last=True))
        return _Pieces(pieces, self._rewrite_pieces(pieces))

    def _rewrite_pieces(self, pieces: Iterable[bytes]) -> Generator[bytes]:
        try:
            for piece in pieces:
                if self._is_part:
                    break
                is_silent = True
                for made in self._push(piece, is_last=False):
                    if made:
                        is_silent = False
                        yield made
                if is_silent:
                    yield b""
        except Exception:
            if self._body is not None and self._held is None:
                yield b"".join(self._body.abandon())
            raise
        if self._is_part:
            whole = self.wrap(())
            try:
                yield from whole
            finally:
                _close(whole)
            return
        # A response to HEAD has a piece, too: without one, servers send a length of 0.
        yield from self._push(b"", is_last=True)

    def _push(self, data: bytes, *, is_last: bool) -> Iterator[bytes]:
        """Rewrite a piece of the body, and yield the finished bytes; start the response first."""
        if self._held is not None and self._body is not None:
            status, headers = self._held
            self._held = None
            match self._body.begin(data, is_last=is_last):
                case Unaltered():
                    self._body = None
                    self._pass_on(status, headers)
                case Whole(whole):
                    self._pass_on(status, rewritten(headers, len(whole)))
                    data = b""
                    yield whole
                case Streamed():
                    self._pass_on(status, rewritten(headers, None))
        if self._body is None:
            yield data
            return
        yield from self._body.feed_whole(data)
        if is_last:
            yield from self._body.close()

    def _write(self, data: bytes) -> None:
        """Handle bytes that the application writes, as its `write`."""
        for piece in self._push(data, is_last=False):
            if piece and self._server_write is not None:
                self._server_write(piece)

    def _pass_on(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Write:
        if exc_info is None:
            self._server_write = self._start_response(status, headers)
        else:
            self._server_write = self._start_response(status, headers, exc_info)
        return self._server_write

    def _page_url(self) -> str | None:
        environ = self._environ
        path = quote(f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}", PATH_SAFE, "latin-1")
        host = environ.get("HTTP_HOST") or f"{environ.get('SERVER_NAME')}:{environ.get('SERVER_PORT')}"
        return self._rewriter.page_url(
            environ.get("wsgi.url_scheme", "http"), host, path, environ.get("QUERY_STRING", "")
        )


class _Pieces:
    """An iterable that closes its source, even before the first iteration."""

    def __init__(self, source: Iterable[bytes], pieces: Generator[bytes]) -> None:
        self._source, self._pieces = source, pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self._pieces.close()
        _close(self._source)


def _close(pieces: Iterable[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
