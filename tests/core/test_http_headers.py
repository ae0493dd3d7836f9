"""Header fields: tables of the RFCs and of nginx's tests, and nothing raises whatever a client sends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from imgkeep.core.http_headers import (
    FORWARDED_HEADERS,
    RETRY_AFTER_MAX_S,
    cache_status,
    client_address,
    etag_matches,
    passed_through_us,
    read_host,
    read_origin,
    read_retry_after,
)
from imgkeep.core.ip_ranges import unmap
from imgkeep.core.range_header import Span, is_whole_range, range_applies, read_range
from tests.support.tables import table

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
ANY = st.text(max_size=200) | st.text("bytes=-,0123456789 \t*/W\"'abc;:[]forFOR.", max_size=60)
NAMES = st.sampled_from(["Forwarded", "X-Forwarded-For", "CDN-Loop", "Via"])
FIELDS = st.lists(st.tuples(NAMES, ANY), max_size=4).map(CIMultiDict)


@table(
    ("field", "matches"),
    [
        pytest.param('"a"', True, id="strong"),
        pytest.param('W/"a"', True, id="weak"),
        pytest.param("*", True, id="any"),
        pytest.param(" * ", True, id="any with spaces"),
        pytest.param('"b", W/"c" ,"a"', True, id="last of a list"),
        pytest.param('"b",, ,"a"', True, id="empty members"),
        pytest.param(', "a"', True, id="empty first member"),
        pytest.param('"x,y", "a"', True, id="comma inside a tag"),
        pytest.param('"b"', False, id="another"),
        pytest.param("a", False, id="unquoted"),
        pytest.param('w/"a"', False, id="small w"),
        pytest.param('"A"', False, id="another case"),
        pytest.param('"a', False, id="open"),
        pytest.param('"b" "a"', False, id="no comma"),
        pytest.param('"b", *', False, id="star in a list"),
        pytest.param("", False, id="empty"),
        pytest.param('"', False, id="a quote"),
        pytest.param(",", False, id="a comma"),
    ],
)
def test_if_none_match_compares_weakly(field: str, matches: bool) -> None:  # noqa: FBT001 - a table
    assert etag_matches(field, '"a"') is matches


@pytest.mark.parametrize(
    ("field", "applies"),
    [
        pytest.param(None, True, id="absent"),
        pytest.param('"a"', True, id="the tag"),
        pytest.param(' "a" ', True, id="with spaces"),
        pytest.param('W/"a"', False, id="weak"),
        pytest.param('"b"', False, id="another"),
        pytest.param('"b", "a"', False, id="a list"),
        pytest.param("Sun, 22 Nov 2026 10:00:00 GMT", False, id="a date"),
        pytest.param("*", False, id="star"),
        pytest.param("", False, id="empty"),
    ],
)
def test_if_range_compares_strongly(field: str | None, applies: bool) -> None:  # noqa: FBT001 - a table
    assert range_applies(field, '"a"') is applies


RANGES = [
    pytest.param("bytes=0-8", Span(0, 9), id="0-8"),
    pytest.param("bytes=-10", Span(990, 1000), id="-10"),
    pytest.param("bytes=990-", Span(990, 1000), id="990-"),
    pytest.param("bytes=990-1990", Span(990, 1000), id="clipped"),
    pytest.param("bytes=-2000", Span(0, 1000), id="suffix beyond the size"),
    pytest.param("bytes=999-999", Span(999, 1000), id="last byte"),
    pytest.param("BYTES = 0-8 ", Span(0, 9), id="case and spaces"),
    pytest.param("bytes=0-" + "9" * 18, Span(0, 1000), id="18 digits"),
    pytest.param("bytes=1000-", "unsatisfiable", id="1000-"),
    pytest.param("bytes=1000-1001", "unsatisfiable", id="1000-1001"),
    pytest.param("bytes=-0", "unsatisfiable", id="-0"),
    pytest.param("bytes=0-8,10-12", None, id="two ranges"),
    pytest.param("bytes=0-8, -10, 990-", None, id="three ranges"),
    pytest.param("bytes=8-0", None, id="backwards"),
    pytest.param("bytes=2000-1000", None, id="backwards beyond the end"),
    pytest.param("bytes=alpha", None, id="alpha"),
    pytest.param("bytes=10", None, id="10"),
    pytest.param("bytes=10-11 12-", None, id="no comma"),
    pytest.param("bytes=-", None, id="-"),
    pytest.param("bytes=", None, id="nothing"),
    pytest.param("bytes=--5", None, id="--5"),
    pytest.param("bytes=+1-5", None, id="+1"),
    pytest.param("bytes=1.0-5", None, id="1.0"),
    pytest.param("bytes=0x1-5", None, id="0x1"),
    pytest.param("bytes=\u0660-\u0668", None, id="other digits"),
    pytest.param("bytes=0-" + "9" * 19, None, id="overlong end"),
    pytest.param("bytes=" + "9" * 5000 + "-", None, id="overlong start"),
    pytest.param("items=0-8", None, id="another unit"),
    pytest.param("", None, id="empty"),
]


@table(("field", "wanted"), RANGES)
def test_range_of_1000_bytes(field: str, wanted: object) -> None:
    assert read_range(field, 1000) == wanted


@given(start=st.none() | st.integers(0, 10**19), last=st.none() | st.integers(0, 10**19), size=st.integers(1, 10**15))
def test_span_is_never_empty_and_lies_within_the_body(start: int | None, last: int | None, size: int) -> None:
    field = f"bytes={'' if start is None else start}-{'' if last is None else last}"
    span = read_range(field, size)
    if isinstance(span, Span):
        assert 0 <= span.start < span.end <= size


@pytest.mark.parametrize(
    ("field", "whole"),
    [
        pytest.param("bytes 0-999/1000", True, id="whole"),
        pytest.param(" Bytes 0-999/1000 ", True, id="case and spaces"),
        pytest.param("bytes 0-998/1000", False, id="without the last"),
        pytest.param("bytes 1-999/1000", False, id="without the first"),
        pytest.param("bytes 0-999/*", False, id="unknown size"),
        pytest.param("bytes */1000", False, id="unsatisfied"),
        pytest.param("", False, id="empty"),
    ],
)
def test_unasked_range_counts_only_when_it_is_whole(field: str, whole: bool) -> None:  # noqa: FBT001 - a table
    assert is_whole_range(field) is whole


@table(
    ("field", "seconds"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param("0", 0, id="0"),
        pytest.param(" 120 ", 120, id="120"),
        pytest.param("999999999", RETRY_AFTER_MAX_S, id="years"),
        pytest.param("9999999999", None, id="overlong"),
        pytest.param("-5", None, id="negative"),
        pytest.param("1.5", None, id="a fraction"),
        pytest.param("\u0661", None, id="another digit"),
        pytest.param("Sun, 22 Nov 2026 10:01:00 GMT", 60, id="a date"),
        pytest.param("Sun, 22 Nov 2026 09:00:00 GMT", 0, id="a date gone by"),
        pytest.param("Sun, 22 Nov 2099 09:00:00 GMT", RETRY_AFTER_MAX_S, id="a date far away"),
        pytest.param("Sun, 22 Nov 2026 10:01:00 -0000", None, id="a date without zone"),
        pytest.param("Sun, 99 Nov 2026 10:01:00 GMT", None, id="no date"),
        pytest.param("soon", None, id="a word"),
        pytest.param("", None, id="empty"),
    ],
)
def test_retry_after(field: str | None, seconds: int | None) -> None:
    assert read_retry_after(field, NOW) == seconds


@given(st.integers(-(10**6), 10**6))
def test_retry_after_is_never_negative_whatever_the_clocks_say(seconds: int) -> None:
    date = (NOW + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert read_retry_after(date, NOW) == min(max(seconds, 0), RETRY_AFTER_MAX_S)


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        pytest.param([], False, id="none"),
        pytest.param([("CDN-Loop", "imgkeep")], True, id="CDN-Loop"),
        pytest.param([("cdn-loop", "a.example, ImgKeep; v=1")], True, id="with others and a parameter"),
        pytest.param([("CDN-Loop", "a.example"), ("CDN-Loop", "imgkeep")], True, id="on another line"),
        pytest.param([("Via", "1.1 varnish, 1.1 imgkeep (x)")], True, id="Via"),
        pytest.param([("Via", "1.1 varnish"), ("Via", "1.1 imgkeep")], True, id="Via on another line"),
        pytest.param([("CDN-Loop", "imgkeeper, notimgkeep")], False, id="others"),
        pytest.param([("Via", "imgkeep")], False, id="Via without a protocol"),
        pytest.param([("CDN-Loop", ""), ("Via", " , ,")], False, id="empty"),
    ],
)
def test_loop_is_seen(fields: list[tuple[str, str]], ours: bool) -> None:  # noqa: FBT001 - a table
    assert passed_through_us(CIMultiDict(fields)) is ours


def test_cache_status_begins_with_imgkeep() -> None:
    assert cache_status("fwd=uri-miss", "stored") == "imgkeep; fwd=uri-miss; stored"


TRUSTED = (ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"))


XFF, RFC = "x-forwarded-for", "forwarded"


@table(
    ("peer", "header", "lines", "address"),
    [
        pytest.param("1.2.3.4", XFF, [], "1.2.3.4", id="nothing claimed"),
        pytest.param("1.2.3.4", XFF, ["9.9.9.9"], "1.2.3.4", id="claimed by a client"),
        pytest.param("10.0.0.1", XFF, [], "10.0.0.1", id="a trusted proxy itself"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9"], "9.9.9.9", id="one address"),
        pytest.param("10.0.0.1", XFF, ["8.8.8.8, 9.9.9.9, 10.2.3.4"], "9.9.9.9", id="nearest"),
        pytest.param("10.0.0.1", XFF, ["6.6.6.6", "9.9.9.9"], "9.9.9.9", id="two lines in order"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9", "10.2.3.4"], "9.9.9.9", id="over two lines"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9, unknown"], "10.0.0.1", id="unknown"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9, junk, 10.2.3.4"], "10.2.3.4", id="malformed behind a proxy"),
        pytest.param("10.0.0.1", XFF, [" , "], "10.0.0.1", id="empty members"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9,"], "10.0.0.1", id="empty last member"),
        pytest.param("10.0.0.1", XFF, [""], "10.0.0.1", id="empty"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9:4711"], "9.9.9.9", id="IPv4 with port"),
        pytest.param("10.0.0.1", XFF, ["[2001:db8::7]:4711"], "2001:db8::7", id="IPv6 with port"),
        pytest.param("10.0.0.1", XFF, ["[2001:db8::7]"], "2001:db8::7", id="IPv6 in brackets"),
        pytest.param("10.0.0.1", XFF, ["2001:db8::7"], "2001:db8::7", id="IPv6"),
        pytest.param("10.0.0.1", XFF, ["::ffff:9.9.9.9"], "9.9.9.9", id="IPv4-mapped"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9, ::ffff:10.2.3.4"], "9.9.9.9", id="trusted and IPv4-mapped"),
        pytest.param("::ffff:10.0.0.1", XFF, ["9.9.9.9"], "9.9.9.9", id="an IPv4-mapped peer"),
        pytest.param("::ffff:1.2.3.4", XFF, [], "1.2.3.4", id="an IPv4-mapped client"),
        pytest.param("10.0.0.1", XFF, ["9.9.9.9:"], "10.0.0.1", id="port missing"),
        pytest.param("10.0.0.1", XFF, ["09.9.9.9"], "10.0.0.1", id="leading zero"),
        pytest.param("10.0.0.1", XFF, ["999.9.9.9"], "10.0.0.1", id="no address"),
        pytest.param("10.0.0.1", XFF, ["fe80::1%eth0"], "10.0.0.1", id="scoped"),
        pytest.param("10.0.0.1", XFF, ["fe80::1%\x1b[31m"], "10.0.0.1", id="control characters"),
        pytest.param("10.0.0.1", XFF, ["\uff11.2.3.4"], "10.0.0.1", id="wide digit"),
        pytest.param("10.0.0.1", XFF, ['"9.9.9.9"'], "10.0.0.1", id="quoted outside of Forwarded"),
        pytest.param("10.0.0.1", XFF, ["10.0.0.2," * 40 + "10.0.0.3"], "10.0.0.2", id="more hops than are read"),
        pytest.param("10.0.0.1", RFC, ["for=9.9.9.9;proto=https"], "9.9.9.9", id="Forwarded"),
        pytest.param("10.0.0.1", RFC, ["For=6.6.6.6, by=x;for=9.9.9.9"], "9.9.9.9", id="Forwarded, two"),
        pytest.param("10.0.0.1", RFC, ["for=6.6.6.6", " proto=http ; FOR = 9.9.9.9"], "9.9.9.9", id="Forwarded, lines"),
        pytest.param("10.0.0.1", RFC, ['for="[2001:db8::7]:4711"'], "2001:db8::7", id="Forwarded, IPv6 with port"),
        pytest.param("10.0.0.1", RFC, ['for="9.9.9.9:4711"'], "9.9.9.9", id="Forwarded, IPv4 with port"),
        pytest.param("10.0.0.1", RFC, ["for=9.9.9.9, for=10.2.3.4"], "9.9.9.9", id="Forwarded, behind two"),
        pytest.param("10.0.0.1", RFC, ["for=_hidden"], "10.0.0.1", id="hidden"),
        pytest.param("10.0.0.1", RFC, ["for=6.6.6.6;for=9.9.9.9"], "10.0.0.1", id="for twice"),
        pytest.param("10.0.0.1", RFC, ["proto=https"], "10.0.0.1", id="no for"),
        pytest.param("10.0.0.1", RFC, ['for=6.6.6.6;x=", for="[2001:db8::7]"'], "2001:db8::7", id="an open quote"),
        pytest.param("10.0.0.1", RFC, ['x="for=6.6.6.6, for=9.9.9.9'], "9.9.9.9", id="an open quote before"),
        pytest.param("10.0.0.1", RFC, ['for="6.6.6.6'], "10.0.0.1", id="half a quote"),
        pytest.param("10.0.0.1", "x-real-ip", ["9.9.9.9"], "9.9.9.9", id="X-Real-IP"),
        pytest.param("10.0.0.1", "", ["9.9.9.9"], "10.0.0.1", id="no header counts"),
        pytest.param("2001:db8:1::1", XFF, ["2001:db8::7"], "2001:db8::7", id="IPv6 proxy"),
        pytest.param("unix:", XFF, ["9.9.9.9"], "unix:", id="a peer without address"),
        pytest.param("", XFF, ["9.9.9.9"], "", id="a peer unknown"),
    ],
)
def test_clients_address(peer: str, header: str, lines: list[str], address: str) -> None:
    fields = CIMultiDict([(header.title(), line) for line in lines])
    assert str(client_address(peer, fields, TRUSTED, header)) == address


@table("header", FORWARDED_HEADERS)
def test_no_other_field_identifies_the_client(header: str) -> None:
    forged = {name: "for=6.6.6.6" if name == RFC else "6.6.6.6" for name in FORWARDED_HEADERS if name != header}
    assert str(client_address("10.0.0.1", CIMultiDict(forged), TRUSTED, header)) == "10.0.0.1"


@given(text=ANY, claimed=st.ip_addresses(), header=st.sampled_from(FORWARDED_HEADERS))
def test_entry_of_the_trusted_proxy_counts(text: str, claimed: IPv4Address | IPv6Address, header: str) -> None:
    proxy = f'for="[{claimed}]"' if claimed.version == 6 else f"for={claimed}"
    appended = proxy if header == RFC else str(claimed)
    if any(unmap(claimed) in network for network in TRUSTED):
        return
    for lines in ([text, appended], [f"{text}, {appended}"]):
        fields = CIMultiDict([(header, line) for line in lines])
        assert client_address("10.0.0.1", fields, TRUSTED, header) == unmap(claimed)


@given(text=ANY, fields=FIELDS)
def test_nothing_raises(text: str, fields: CIMultiDict[str]) -> None:
    etag_matches(text, '"a"')
    range_applies(text, '"a"')
    read_range(text, 1000)
    is_whole_range(text)
    read_retry_after(text, NOW)
    passed_through_us(fields)
    for header in ("", *FORWARDED_HEADERS):
        client_address("10.0.0.1", fields, TRUSTED, header)
        client_address(text, fields, TRUSTED, header)


@table(
    ("value", "host"),
    [
        ("a.example", "a.example"),
        ("A.Example:8080", "a.example"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1]:80", "::1"),
        ("x_y~%41", "x_y~%41"),
        *((value, None) for value in ("", "a b", "a/b", "u@a", "[::1", "::1", "a:b", "a:1:2", "%zz", "ä", "a:123456")),
    ],
)
def test_host_is_read_without_its_port(value: str, host: str | None) -> None:
    assert read_host(value) == host


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("https://a.example", "a.example"),
        ("http://[::1]:80", "::1"),
        *((value, None) for value in ("null", "", "http://", "http://[", "a.example", "http://a/b", "://a")),
    ],
)
def test_host_of_an_origin(value: str, host: str | None) -> None:
    assert read_origin(value) == host
