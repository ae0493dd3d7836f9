"""Heads of requests, read strictly: aiohttp's parser takes each of them for one request without a body, too."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http import HttpProcessingError, HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.web.fastpath.request_head import (
    BLOCK_BYTES_MAX,
    FIELDS_MAX,
    HEAD_BYTES_MAX,
    NO_CONDITIONS,
    RequestConditions,
    RequestFields,
    is_part_of_head,
    list_fields,
    read_conditions,
)
from tests.support.parser_peer import ParserPeer
from tests.support.tables import table

HOST = b"Host: imgkeep.example\r\n"

READ = [
    pytest.param(b"\r\n", NO_CONDITIONS, id="a host"),
    pytest.param(b"Cookie: a=b; c=\xff\r\nAccept: */*\r\nX:\r\n\r\n", NO_CONDITIONS, id="fields without effect"),
    pytest.param(b"Connection: keep-alive\r\n\r\n", NO_CONDITIONS, id="keep-alive"),
    pytest.param(b"CONNECTION:Keep-Alive \r\n\r\n", NO_CONDITIONS, id="keep-alive in another spelling"),
    pytest.param(b"Connection:\r\n\r\n", NO_CONDITIONS, id="an empty Connection, as nginx sends it"),
    pytest.param(b"A: b\r\n" * (FIELDS_MAX - 2) + b"\r\n", NO_CONDITIONS, id="many"),
    pytest.param(b"X-Range: bytes=0-1\r\n\r\n", NO_CONDITIONS, id="a longer name that ends alike"),
    pytest.param(b'If-None-Match: "a"\r\n\r\n', RequestConditions(if_none_match='"a"'), id="If-None-Match"),
    pytest.param(
        b'if-none-match: "a"\r\nIF-NONE-MATCH:"b"\r\n\r\n', RequestConditions('"a", "b"'), id="two lines are one list"
    ),
    pytest.param(
        b'Range: bytes=0-1\r\nIf-Range: "a"\r\n\r\n', RequestConditions(None, "bytes=0-1", '"a"'), id="a range"
    ),
    pytest.param(b"Range:\t bytes=0-1 \t\r\n\r\n", RequestConditions(range="bytes=0-1"), id="white space around it"),
]

LEFT = [
    pytest.param(b"", id="no end"),
    pytest.param(b"\r\n\r\n", id="an end too many"),
    pytest.param(b"\r\nGET /b HTTP/1.1\r\n\r\n", id="a second request"),
    pytest.param(b"Content-Length: 0\r\n\r\n", id="a body of no bytes"),
    pytest.param(b"content-length: 5\r\n\r\n", id="a body"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n", id="a chunked body"),
    pytest.param(b"Expect: 100-continue\r\n\r\n", id="an expectation"),
    pytest.param(b"Upgrade: websocket\r\n\r\n", id="an upgrade"),
    pytest.param(b"Connection: close\r\n\r\n", id="the last request"),
    pytest.param(b"Connection: keep-alive, Upgrade\r\n\r\n", id="a list of options"),
    pytest.param(b"A: b\nContent-Length: 5\r\n\r\n", id="a bare line feed"),
    pytest.param(b"A: b\rContent-Length: 5\r\n\r\n", id="a bare carriage return"),
    pytest.param(b"A: b\r\n c\r\n\r\n", id="a folded line"),
    pytest.param(b" A: b\r\n\r\n", id="a line that begins with a space"),
    pytest.param(b"A : b\r\n\r\n", id="a space before the colon"),
    pytest.param(b"Content-Length : 5\r\n\r\n", id="a length with a space before the colon"),
    pytest.param(b"A b\r\n\r\n", id="no colon"),
    pytest.param(b": b\r\n\r\n", id="no name"),
    pytest.param(b"A: \x00\r\n\r\n", id="a null"),
    pytest.param(b"\xc3\xa4: b\r\n\r\n", id="a name that is not ASCII"),
    pytest.param(b"A: " + b"b" * BLOCK_BYTES_MAX + b"\r\n\r\n", id="too long"),
    pytest.param(b"A: b\r\n" * FIELDS_MAX + b"\r\n", id="too many"),
    pytest.param(b"HOST: b\r\n\r\n", id="two hosts"),
]


@table(("block", "asked"), READ)
def test_certain_head_is_read(block: bytes, asked: RequestConditions) -> None:
    assert read_conditions(HOST + block) == asked
    assert (asked is NO_CONDITIONS) == (read_conditions(HOST + block) is NO_CONDITIONS)


@table("block", LEFT)
def test_any_other_head_is_left_to_the_full_parser(block: bytes) -> None:
    assert read_conditions(HOST + block) is None


@table("host", ["", " ", "a b", "a/b", "user@a", "[::1", "::1", "a:b", "a:80:80", "\xff", "a,b c", "%zz"])
def test_invalid_host_is_left_to_the_full_parser(host: str) -> None:
    assert read_conditions(f"Host: {host}\r\n\r\n".encode("latin-1")) is None
    assert read_conditions(b"\r\n") is None


def test_host_of_another_server_is_left_to_the_full_parser() -> None:
    for name in ("localhost", "LocalHost:80", "[::1]:8080", "127.0.0.1"):
        assert (
            read_conditions(f"Host: {name}\r\n\r\n".encode(), frozenset({"localhost", "::1", "127.0.0.1"}))
            is NO_CONDITIONS
        )
    for name in ("localhost.example", "127.0.0.2", "[::2]"):
        assert read_conditions(f"Host: {name}\r\n\r\n".encode(), frozenset({"localhost", "::1", "127.0.0.1"})) is None


def test_fields_keep_their_order() -> None:
    assert list_fields(b"Host: a\r\nX-Forwarded-For:\t1.2.3.4 \r\nX-Forwarded-For: ::1\r\n\r\n") == [
        ("Host", "a"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Forwarded-For", "::1"),
    ]


@pytest.mark.parametrize(
    ("block", "shareable"),
    [
        (b"Host: a\r\nAccept: */*\r\n\r\n", True),
        (b"Host: a\r\nRange: bytes=0-1\r\n\r\n", False),
        (b"Host: a\r\nVIA: 1.1 a\r\n\r\n", False),
        (b"Host: a\r\nCDN-Loop: a\r\n\r\n", False),
        (b"Host: a\r\nX-Via: a\r\n\r\n", True),
        (b"Connection: close\r\n\r\n", False),
    ],
)
def test_only_a_client_without_conditions_may_share_a_response(block: bytes, *, shareable: bool) -> None:
    assert RequestFields(block).are_shareable() == shareable


def test_fields_are_parsed_once() -> None:
    fields = RequestFields(b"Host: a\r\nX: 1\r\nx: 2\r\n\r\n")
    assert fields.parse().getall("X") == ["1", "2"]
    assert fields.parse() is fields.parse()


def test_class_of_a_client_is_read_once_from_all_lines() -> None:
    fields = RequestFields(b"Host: a\r\nAccept: image/avif\r\nAccept: image/webp;q=0.9\r\n\r\n")
    assert fields.client_class == b"avif,webp"
    assert fields.client_class is fields.client_class


@pytest.mark.parametrize(
    ("data", "is_part"),
    [
        (b"", True),
        (b"G", True),
        (b"HEA", True),
        (b"GET /img", True),
        (b"HEAD /img HTTP/1.1\r\nHost: a\r\n", True),
        (b"P", False),
        (b"POST /img", False),
        (b"GET /img HTTP/1.1\r\n\r\nx", False),
        (b"GET /" + b"a" * HEAD_BYTES_MAX, False),
    ],
)
def test_part_of_a_head_is_recognised(data: bytes, *, is_part: bool) -> None:
    assert is_part_of_head(data) == is_part


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close", b"Range: bytes=0-1"]
        ),
        st.binary(max_size=12),
        st.builds(lambda name, value: name + b":" + value, st.binary(max_size=6), st.binary(max_size=6)),
    ),
    max_size=4,
)


@given(LINES, st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b"\r"]), st.binary(max_size=6))
def test_aiohttp_finds_the_same_single_request_without_a_body(lines: list[bytes], end: bytes, tail: bytes) -> None:
    block = b"".join(line + end for line in lines) + tail + b"\r\n\r\n"
    whole = b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    for candidate in (block, whole, HOST + block, HOST + whole):
        if read_conditions(candidate) is None:
            continue
        loop = asyncio.new_event_loop()
        try:
            parser = HttpRequestParser(ParserPeer(), loop, 65_536, max_line_size=65_536, max_field_size=65_536)  # type: ignore[arg-type]
            try:
                messages, upgraded, rest = parser.feed_data(b"GET /a HTTP/1.1\r\n" + candidate)
            except HttpProcessingError:
                continue  # it answers 400 and closes: our reading was more lenient, but of one whole request, too
            assert (len(messages), upgraded, rest) == (1, False, b"")
            assert messages[0][1].is_eof()
            assert not messages[0][0].should_close
        finally:
            loop.close()
