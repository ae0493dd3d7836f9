"""
Middleware for WSGI applications (PEP 3333): Flask, Django, Bottle, Pyramid, and what else speaks it.

    app.wsgi_app = Imgkeep(app.wsgi_app, public_url="https://img.example.com")

Rules:
- A response that is left alone is not touched: its iterable is handed on as it is, so servers go on sending files and
  counting lists.
- What the server is told about one that is rewritten waits for the first piece of its body. For each piece that the
  application yields one is yielded, be it empty; what it writes is written at once.
- The application's iterable is closed whenever ours is.
- Who asks for a part of a page gets the page: the application is asked again, for all of it.
- What was held back goes out when the application fails.
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
    """A WSGI application whose pages ask imgkeep for their images; see `Options`."""

    def __init__(self, app: WSGIApplication, **options: Unpack[Options]) -> None:
        self._app = app
        self._rewriter = LinkRewriter(**options)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = _Response(environ, start_response, self._rewriter)
        if "HTTP_RANGE" in environ:  # applications may change what they are given
            whole = {name: value for name, value in environ.items() if name not in _RANGE}
            response.ask_whole = lambda: self._app(whole, response.start)
        return response.wrap(self._app(environ, response.start))


class _Response:
    """
    One response.

    `held` is what the application has told and the server has not been told yet; `body` is there from then on until it
    turns out that the response is left alone. `ask_whole` asks the application for all of what it gave a part of.
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
        """Be the `start_response` of the application."""
        if self._is_started and exc_info is None:
            raise AssertionError("start_response was called again without exc_info")
        was_told = self._server_write is not None
        self._is_started, self._held, self._body = True, None, None
        if was_told:
            # The server raises if something has gone out, and else takes this in the place of the first response.
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
        """Return what to give to the server in the place of the application's iterable."""
        if self._is_part and self.ask_whole is not None:
            _close(pieces)
            ask_whole, self.ask_whole = self.ask_whole, None
            self._is_started = self._is_part = False
            return self.wrap(ask_whole())
        if self._is_started and self._body is None and not self._is_head:
            return pieces
        if isinstance(pieces, (list, tuple)) and self._held is not None:
            # It is all there. As a list again, it has a length that servers can tell where the application does not.
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
        # Answers to HEAD, too, have a piece: servers that see none tell that the length is 0.
        yield from self._push(b"", is_last=True)

    def _push(self, data: bytes, *, is_last: bool) -> Iterator[bytes]:
        """Take a piece of the body, yield what goes out, once the server knows what is coming."""
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
        """Be the `write` of the application."""
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
    """An iterable that is closed with another one, also where nobody iterates."""

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
