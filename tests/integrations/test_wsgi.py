"""The WSGI middleware against PEP 3333: a server's side, watched closely, and real servers and frameworks."""

from __future__ import annotations

import http.client
from io import BytesIO, StringIO
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from flask import Flask, Response, make_response, request, send_file

from imgkeep.integrations.wsgi import Imgkeep
from tests.support.pages import HTML, LINK, PAGE, PLAIN, WANTED
from tests.support.wsgi_server import WsgiServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def wrapped(app: WSGIApplication, **options: Any) -> Imgkeep:
    return Imgkeep(app, **{"public_url": "https://k.example", "which": ["h.example"], **options})


def caught(message: str) -> Any:
    """Return what `sys.exc_info` tells where an exception is handled."""
    error = LookupError(message)
    return LookupError, error, error.__traceback__


def answers(body: Iterable[bytes], *headers: tuple[str, str], status: str = "200 OK") -> WSGIApplication:
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, [HTML, *headers])
        return body

    return app


def test_list_stays_a_list() -> None:
    server = WsgiServer(wrapped(answers([PAGE[:20], PAGE[20:]])))
    assert server.result == [WANTED]
    assert server.headers == dict([HTML])


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_length_of_each_kind_of_iterable_is_right(make: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    server = WsgiServer(wrapped(answers(make([PAGE]), ("Content-Length", str(len(PAGE))), ("ETag", '"a"'))))
    assert server.run() == WANTED
    assert server.headers == dict([HTML, ("Content-Length", str(len(WANTED))), ("ETag", 'W/"a"')])


def test_buffered_piece_becomes_an_empty_one() -> None:
    server = WsgiServer(wrapped(answers(iter([b"<img ", b"src='", LINK.encode(), b"'>"]))))
    assert list(server.result)[:3] == [b"", b"", b""]


def test_iterable_of_another_response_is_the_same_object() -> None:
    file = FileWrapper(BytesIO(b"image"))

    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "image/png")])
        return file

    assert WsgiServer(wrapped(app)).result is file


def test_file_wrapper_with_a_page_is_rewritten() -> None:
    file = BytesIO(PAGE)
    server = WsgiServer(wrapped(answers(FileWrapper(file, 16), ("Content-Length", str(len(PAGE))))))
    assert server.run() == WANTED
    assert file.closed


class Pieces:
    """An iterable that tells whether it was closed."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = iter(pieces)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("started", [0, 1, 9])
def test_iterable_is_closed_with_its_wrapper(method: str, started: int) -> None:
    pieces = Pieces(PAGE, PAGE)
    result: Any = WsgiServer(wrapped(answers(pieces)), REQUEST_METHOD=method).result
    for _, _ in zip(result, range(started), strict=False):
        pass
    assert pieces.closed == 0
    result.close()
    assert [pieces.closed] == [1]


def test_generator_application_starts_late() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [HTML if environ["PATH_INFO"] == "/" else ("Content-Type", "text/plain")])
        yield PAGE[:30]
        yield PAGE[30:]

    server = WsgiServer(wrapped(app))
    assert server.told == []
    assert server.run() == WANTED
    assert WsgiServer(wrapped(app), PATH_INFO="/other").run() == PAGE


def test_written_bytes_go_out_first() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [HTML, ("Content-Length", str(len(PAGE)))])
        write(PAGE[:60])
        assert environ["written"] == [PAGE[: PAGE.index(b"<img")]]
        write(PAGE[60:-5])
        return [PAGE[-5:]]

    def watched(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["written"] = []

        def start(*told: Any) -> Callable[[bytes], object]:
            start_response(*told)
            return environ["written"].append  # type: ignore[no-any-return]

        rest = list(wrapped(app)(environ, start))
        return [*environ["written"], *rest]

    server = WsgiServer(watched)
    assert server.run() == WANTED
    assert "Content-Length" not in server.headers


def test_error_before_the_first_piece_replaces_the_page() -> None:
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [HTML, ("X-Page", "1")])
        start_response("500 Internal Server Error", [HTML], caught(""))
        return [PAGE]

    server = WsgiServer(wrapped(app))
    assert server.run() == WANTED
    assert server.told == [("500 Internal Server Error", dict([HTML]))]


def test_server_raises_an_error_after_the_first_piece() -> None:
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [HTML])
        yield PAGE
        start_response("500 Internal Server Error", [HTML], caught("late"))
        yield b"never"

    server = WsgiServer(wrapped(app))
    with pytest.raises(LookupError, match="late"):
        server.run()
    assert b"".join(server.written) == WANTED[: len(b"".join(server.written))]


def test_error_before_any_byte_is_sent_unchanged() -> None:
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [HTML])
        yield b""
        start_response("500 Internal Server Error", [HTML], caught("early"))
        yield PAGE

    server = WsgiServer(wrapped(app))
    assert server.run() == PAGE
    assert server.told[-1] == ("500 Internal Server Error", dict([HTML]))


RANGE = {"HTTP_RANGE": "bytes=40-", "HTTP_IF_RANGE": "Wed, 25 Nov 2026 10:00:00 GMT"}


@pytest.mark.parametrize("kind", [list, iter], ids=["a list", "a generator"])
@pytest.mark.parametrize("starts", ["at once", "late"])
def test_iterables_of_both_responses_are_closed(kind: Callable[[list[bytes]], Any], starts: str) -> None:
    closed: list[str] = []

    class Pieces:
        def __init__(self, name: str, pieces: list[bytes]) -> None:
            self.name, self.pieces = name, kind(pieces)

        def __iter__(self) -> Iterator[bytes]:
            yield from self.pieces

        def close(self) -> None:
            closed.append(self.name)

    def begun(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "HTTP_RANGE" in environ:
            environ["PATH_INFO"] = "/changed"
            size = len(PAGE)
            start_response("206 Partial Content", [HTML, ("Content-Range", f"bytes 40-{size - 1}/{size}")])
            return Pieces("part", [PAGE[40:]])
        assert "HTTP_IF_RANGE" not in environ
        assert environ["PATH_INFO"] == "/"
        start_response("200 OK", [HTML])
        return Pieces("whole", [PAGE[:60], PAGE[60:]])

    def late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        pieces = begun(environ, start_response)
        try:
            yield from pieces
        finally:
            pieces.close()  # type: ignore[attr-defined]

    server = WsgiServer(wrapped(begun if starts == "at once" else late), **RANGE)
    assert server.run() == WANTED
    assert server.told == [("200 OK", dict([HTML]))]
    assert sorted(closed) == ["part", "whole"]


def test_starting_twice_is_an_error() -> None:
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [HTML])
        start_response("200 OK", [HTML])
        return [PAGE]

    with pytest.raises(AssertionError):
        WsgiServer(wrapped(app))


@pytest.mark.parametrize(
    ("environ", "base"),
    [
        ({"HTTP_HOST": "h.example", "SCRIPT_NAME": "/app", "PATH_INFO": "/a/b"}, "http://h.example/app/a/"),
        ({"HTTP_HOST": "h.example", "PATH_INFO": "/\xc3\xa4/b?"}, "http://h.example/%C3%A4/"),
    ],
)
def test_relative_link_uses_the_mount_path(environ: dict[str, str], base: str) -> None:
    body = WsgiServer(wrapped(answers([b"<img src='a.png'>"])), **{"PATH_INFO": "/", **environ}).run()
    wanted = f"{base}a.png".replace("%", "%25").replace(":", "%3A").replace("/", "%2F")
    assert body == f"<img src='https://k.example/img?src={wanted}'>".encode()


def test_site_url_replaces_the_host() -> None:
    page = [b"<img src='a.png'><img src='//h.example/b.png'>"]
    app = wrapped(answers(page), site_url="https://h.example/", which="all", allow=["*"])
    wanted = b"<img src='a.png'><img src='https://k.example/img?src=https%3A%2F%2Fh.example%2Fb.png'>"
    # What is on the site itself stays there, so neither is rewritten.
    assert WsgiServer(app, HTTP_HOST="10.0.0.1:8000").run() == b"<img src='a.png'><img src='//h.example/b.png'>"
    other = wrapped(answers(page), site_url="https://o.example", which="all", allow=["*"])
    assert WsgiServer(other, HTTP_HOST="10.0.0.1:8000").run() == wanted


def test_wsgiref_validator_accepts_both_sides() -> None:
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [HTML])
        return FileWrapper(BytesIO(PAGE), 9)

    out = BytesIO()
    environ: WSGIEnvironment = {}
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = "a=1"
    SimpleHandler(BytesIO(), out, StringIO(), environ, multithread=False).run(validator(wrapped(validator(app))))
    head, _, body = out.getvalue().partition(b"\r\n\r\n")
    assert body == WANTED
    assert b"200 OK" in head


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize(("method", "length"), [("GET", str(len(WANTED))), ("HEAD", None)])
def test_real_server_sends_the_right_length(method: str, length: str | None) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [HTML, ("Content-Length", str(len(PAGE)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [PAGE]

    with make_server("127.0.0.1", 0, wrapped(app), handler_class=Quiet) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request(method, "/")
        response = connection.getresponse()
        assert response.getheader("Content-Length") == length
        assert response.read() == (WANTED if method == "GET" else b"")
        connection.close()
        thread.join()


@pytest.fixture
def flask() -> Flask:
    app = Flask(__name__)
    app.wsgi_app = wrapped(app.wsgi_app)  # type: ignore[method-assign]

    @app.get("/page")
    def page() -> Any:
        response = make_response(PAGE.decode())
        response.add_etag()
        return response.make_conditional(request)

    @app.get("/plain")
    def plain() -> bytes:
        return PLAIN

    @app.get("/file")
    def file() -> Response:
        return send_file(BytesIO(PAGE), "text/html", last_modified=1_700_000_000, etag="one")

    @app.get("/streamed")
    def streamed() -> Response:
        return Response(iter([PAGE[:50], PAGE[50:]]), mimetype="text/html")

    return app


def test_flask(flask: Flask) -> None:
    client = flask.test_client()
    page = client.get("/file")
    part = client.get("/file", headers={"Range": "bytes=40-", "If-Range": page.headers["Last-Modified"]})
    assert (page.data, part.status_code, part.data) == (WANTED, 200, WANTED)
    page = client.get("/page")
    assert page.data == WANTED
    assert page.content_length == len(WANTED)
    tag = page.headers["ETag"]
    assert tag.startswith('W/"')
    again = client.get("/page", headers={"If-None-Match": tag})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    head = client.head("/page")
    assert (head.data, head.headers.get("Content-Length"), head.headers["ETag"]) == (b"", None, tag)
    assert client.get("/plain").data == PLAIN
    assert client.get("/streamed").data == WANTED
    assert client.get("/missing").status_code == 404
