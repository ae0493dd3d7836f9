"""Heads that the fast path reads, held against the full parser: the same end, and the same persistence."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import TYPE_CHECKING

import pytest
from aiohttp.http import HttpProcessingError, HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.web.fastpath.request_head import list_fields, read_conditions
from tests.support.parser_peer import ParserPeer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp.http_parser import RawRequestMessage

NAMES = (
    *("Connection", "connection", "Proxy-Connection", "Keep-Alive", "Upgrade", "HTTP2-Settings", "TE", "Trailer"),
    *("Content-Length", "Content-Encoding", "Transfer-Encoding", "Expect", "Host", "Range", "If-Range", "Accept"),
    *("Sec-WebSocket-Key", "Content-Type", "Cookie", "Content-Length ", "X-Content-Length", "Method", "Via"),
)
VALUES = (
    *("", " ", "keep-alive", "Keep-Alive", "close", "CLOSE", "Close, keep-alive", "upgrade", "keep-alive, Upgrade"),
    *("0", "5", "chunked", "gzip", "identity", "h2c", "websocket", "100-continue", "trailers", "a.example", "\t\xff"),
    *("\xa0a\xa0", "a\x85", "\xc2\xa0a", "\xff, \xc3\xa4", "a\tb \t"),
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def parse(loop: asyncio.AbstractEventLoop, data: bytes) -> tuple[list[RawRequestMessage], bool] | None:
    """Return the requests that aiohttp finds, and whether all are whole and have no body; `None`: it refuses them."""
    parser = HttpRequestParser(ParserPeer(), loop, 65_536, max_line_size=65_536, max_field_size=65_536)  # type: ignore[arg-type]
    try:
        messages, upgraded, rest = parser.feed_data(data)
    except HttpProcessingError:
        return None
    return [message for message, _ in messages], not upgraded and not rest and all(p.is_eof() for _, p in messages)


def insist_on_agreement(loop: asyncio.AbstractEventLoop, block: bytes) -> None:
    """Insist that the parser finds one request without a body on a persistent connection, or refuses it."""
    for candidate in (block, b"Host: a\r\n" + block):
        if read_conditions(candidate) is not None:
            insist_on_agreement_about(loop, candidate)


def insist_on_agreement_about(loop: asyncio.AbstractEventLoop, block: bytes) -> None:
    for method in (b"GET", b"HEAD"):
        found = parse(loop, method + b" /a HTTP/1.1\r\n" + block)
        if found is not None:
            (message,), plain = found
            assert plain
            assert not message.should_close
            assert not message.upgrade
            assert not message.chunked
            judged = [(field.lower(), value) for field, value in message.headers.items()]
            assert [(field.lower(), value) for field, value in list_fields(block)] == judged


@pytest.mark.parametrize("name", NAMES)
def test_single_framing_field_is_read_as_by_the_parser(loop: asyncio.AbstractEventLoop, name: str) -> None:
    for value, before in product(VALUES, ("", "Host: a\r\n", "Connection: keep-alive\r\n")):
        insist_on_agreement(loop, f"{before}{name}:{value}\r\n\r\n".encode("latin-1"))
        insist_on_agreement(loop, f"{before}{name}: {value} \r\nA: b\r\n\r\n".encode("latin-1"))


FIELDS = st.builds(lambda name, value: f"{name}: {value}", st.sampled_from(NAMES), st.sampled_from(VALUES))


@given(st.lists(FIELDS, max_size=6))
def test_many_framing_fields_are_read_as_by_the_parser(fields: list[str]) -> None:
    loop = asyncio.new_event_loop()
    try:
        insist_on_agreement(loop, "\r\n".join([*fields, "", ""]).encode("latin-1"))
    finally:
        loop.close()


@given(st.lists(FIELDS, min_size=1, max_size=4), st.data())
def test_beginning_of_a_readable_head_is_none(fields: list[str], data: st.DataObject) -> None:
    block = "\r\n".join(["Host: a", *fields, "", ""]).encode("latin-1")
    if read_conditions(block) is not None:
        end = data.draw(st.integers(0, len(block) - 1))
        assert read_conditions(block[:end]) is None
        assert read_conditions(block + block[:end]) is None or end == 0


@pytest.mark.parametrize("name", ["Connection", "Proxy-Connection", "proxy-connection"])
@pytest.mark.parametrize(("value", "stays"), [("keep-alive", True), ("Keep-Alive ", True), ("close", False)])
def test_wish_to_close_is_left_to_the_parser(name: str, value: str, *, stays: bool) -> None:
    assert (read_conditions(f"Host: a\r\n{name}: {value}\r\n\r\n".encode()) is not None) == stays
