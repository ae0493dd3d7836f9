"""The contract of the middlewares for WSGI, ASGI and Django: the same reply becomes the same response."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.integrations.response_body import CutShort
from tests.support.middlewares import (
    Received,
    Reply,
    Request,
    through_asgi,
    through_async_django,
    through_django,
    through_wsgi,
)
from tests.support.pages import HTML, LINK, PAGE, PLAIN, WANTED

if TYPE_CHECKING:
    from collections.abc import Callable

    Middleware = Callable[[Request, Callable[[Request], Reply]], Received]

MIDDLEWARES = {
    "wsgi": through_wsgi,
    "asgi": through_asgi,
    "django": through_django,
    "django, asynchronous": through_async_django,
}
LENGTH = {"Content-Length": str(len(PAGE))}


@pytest.fixture(params=MIDDLEWARES.values(), ids=list(MIDDLEWARES))
def through(request: pytest.FixtureRequest) -> Any:
    return request.param


def page(*pieces: bytes, **more: Any) -> Reply:
    headers = dict([HTML]) | more.pop("headers", {})
    return Reply(list(pieces or [PAGE]), headers=headers, **more)


def test_whole_page_gets_its_new_length(through: Middleware) -> None:
    received = through(Request(), lambda _: page(headers=LENGTH | {"ETag": '"a"'}))
    assert (received.status, received.body, received.error) == (200, WANTED, None)
    assert received.headers == {"content-type": HTML[1], "content-length": str(len(WANTED)), "etag": 'W/"a"'}


def test_missing_length_stays_missing(through: Middleware) -> None:
    received = through(Request(), lambda _: page())
    assert (received.body, received.headers) == (WANTED, {"content-type": HTML[1]})


def test_page_without_links_stays(through: Middleware) -> None:
    received = through(Request(), lambda _: page(PLAIN, headers={"Content-Length": str(len(PLAIN))}))
    assert (received.body, received.headers["content-length"]) == (PLAIN, str(len(PLAIN)))


def test_streamed_page_has_no_length(through: Middleware) -> None:
    received = through(Request(), lambda _: page(PAGE[:50], PAGE[50:], streams=True, headers=LENGTH))
    assert (received.body, received.error) == (WANTED, None)
    assert "content-length" not in received.headers


def test_piece_goes_out_before_the_next_is_made(through: Middleware) -> None:
    pieces = [f"<p>{number}<img src='{LINK}'><i".encode() for number in range(3)]
    received = through(Request(), lambda _: page(*pieces, streams=True))
    assert received.pieces[0].startswith(b"<p>0<img src='https://k.example/img?")
    assert received.pieces[1].startswith(b"<i<p>1")
    assert received.made[:3] == [1, 2, 3]


def test_compressed_page_is_compressed_again(through: Middleware) -> None:
    packed = gzip.compress(PAGE)
    coding = {"Content-Encoding": "gzip"}
    received = through(Request(), lambda _: page(packed, headers=coding | {"Content-Length": str(len(packed))}))
    assert gzip.decompress(received.body) == WANTED
    assert received.headers["content-length"] == str(len(received.body))
    received = through(Request(), lambda _: page(packed[:40], packed[40:], streams=True, headers=coding))
    assert gzip.decompress(received.body) == WANTED


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Encoding": "br"},
        {"Cache-Control": "no-transform"},
        {"Content-Range": "bytes 0-9/10"},
        {"Content-Length": "3"},
    ],
    ids=str,
)
def test_other_response_is_not_touched(through: Middleware, headers: dict[str, str]) -> None:
    sent = dict([HTML]) | {"ETag": '"a"', "Accept-Ranges": "bytes"} | headers
    received = through(Request(), lambda _: Reply([PAGE], headers=sent))
    assert received.body == PAGE
    assert received.headers == {name.lower(): value for name, value in sent.items()}


def test_head_has_a_weak_tag_and_no_length(through: Middleware) -> None:
    received = through(Request("HEAD"), lambda _: page(b"", headers=LENGTH | {"ETag": '"a"'}))
    assert (received.body, received.headers) == (b"", {"content-type": HTML[1], "etag": 'W/"a"'})


@pytest.mark.parametrize(("known", "tag"), [('W/"a"', 'W/"a"'), ('"a"', '"a"'), (None, '"a"')])
def test_not_modified_has_the_tag_of_the_client(through: Middleware, known: str | None, tag: str) -> None:
    headers = {} if known is None else {"If-None-Match": known}
    received = through(Request(headers=headers), lambda _: Reply([b""], headers={"ETag": '"a"'}, status=304))
    assert (received.status, received.headers["etag"]) == (304, tag)


def test_request_for_a_part_gets_the_whole_page(through: Middleware) -> None:
    def answer(request: Request) -> Reply:
        if not request.has_range:
            return page()
        size = len(PAGE)
        return page(PAGE[40:], status=206, headers={"Content-Range": f"bytes 40-{size - 1}/{size}"})

    received = through(Request(headers={"Range": "bytes=40-", "If-Range": "x"}), answer)
    assert (received.status, received.body, received.headers) == (200, WANTED, {"content-type": HTML[1]})


def test_part_of_another_type_stays_a_part(through: Middleware) -> None:
    headers = {"Content-Type": "video/mp4", "Content-Range": "bytes 40-49/50"}
    reply = Reply([b"0123456789"], headers=headers, status=206)
    received = through(Request(headers={"Range": "bytes=40-"}), lambda _: reply)
    assert (received.status, received.body) == (206, b"0123456789")


@pytest.mark.parametrize("charset", ["; charset=utf-8", ""])
def test_buffered_bytes_go_out_when_the_application_fails(through: Middleware, charset: str) -> None:
    headers = {"Content-Type": f"text/html{charset}"}
    reply = page(PAGE, b"<p><img src=", streams=True, headers=headers, error=LookupError("late"))
    received = through(Request(), lambda _: reply)
    assert isinstance(received.error, LookupError)
    assert received.body == WANTED + b"<p><img src="


def test_truncated_page_does_not_look_whole(through: Middleware) -> None:
    reply = page(PAGE[:50], PAGE[50:], streams=True, headers={"Content-Length": "500"})
    received = through(Request(), lambda _: reply)
    assert isinstance(received.error, CutShort)
    assert received.body == WANTED


@pytest.mark.parametrize(
    ("request_", "base"),
    [
        pytest.param(Request(headers={"Host": "h.example"}), "http://h.example/", id="root"),
        pytest.param(Request(path="/a/b", headers={"Host": "h.example"}), "http://h.example/a/", id="path"),
        pytest.param(Request(scheme="https", headers={"Host": "h.example"}), "https://h.example/", id="https"),
    ],
)
def test_relative_link_is_resolved_against_the_page(through: Middleware, request_: Request, base: str) -> None:
    received = through(request_, lambda _: page(b"<img src='a.png'>"))
    source = f"{base}a.png".replace(":", "%3A").replace("/", "%2F")
    assert received.body == f"<img src='https://k.example/img?src={source}'>".encode()
