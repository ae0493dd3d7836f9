"""What an origin's answer says about a link."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from imgkeep.core.dead_link import READ_BYTES, explain, is_page, refusal_size, refuses
from imgkeep.core.errors import (
    ImgkeepError,
    NotAnImage,
    OriginError,
    OriginRefused,
    OriginTimeout,
    RedirectForbidden,
    SourceExpired,
    SourceForbidden,
    SourceNotFound,
)
from imgkeep.core.identity import BUILT_IN, identify_url
from imgkeep.core.identity.expired_messages import read_endings
from tests.support.tables import table

NOW = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)
S3 = (
    "https://b.s3.eu-central-1.amazonaws.com/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={}&X-Amz-Expires=600"
    f"&X-Amz-Signature={'0' * 64}"
)
PAST = identify_url(S3.format("20260110T120000Z"), NOW)
FRESH = identify_url(S3.format("20260110T122500Z"), NOW)
PLAIN = identify_url("https://img.example.com/a.png", NOW)
FIGMA = identify_url("https://figma-alpha-api.s3.us-west-2.amazonaws.com/images/790e", NOW)
"""Temporary, without an end that it tells."""
HTML: Final = b"<!DOCTYPE html><title>Sign in</title>"
SAYS: Final = b"<Error><Code>ExpiredToken</Code></Error>"


def answered(status: int, body: bytes = b"") -> OriginError:
    kind = {401: OriginRefused, 403: OriginRefused, 404: SourceNotFound, 410: SourceNotFound}.get(status, OriginError)
    error = kind(f"the origin says {status}", origin_status=status)
    error.refusal = body
    return error


def brought(body: bytes, media_type: str = "") -> NotAnImage:
    error = NotAnImage("no image")
    error.refusal, error.media_type = body, media_type
    return error


def elsewhere(error: OriginError) -> OriginError:
    """Return a failure of another host, to which the link was redirected."""
    error.elsewhere = True
    return error


ENDED = {
    "400 past its end": (answered(400), PAST),
    "403 past its end": (answered(403), PAST),
    "404 past its end": (answered(404), PAST),
    "419 past its end": (answered(419), PAST),
    "422 past its end": (answered(422), PAST),
    "403 of a signed kind": (answered(403), FRESH),
    "410 of a signed kind": (answered(410), FRESH),
    "400 that says so": (answered(400, SAYS), FRESH),
    "400 that says so, of a plain link": (answered(400, SAYS), PLAIN),
    "403 that says so, of a plain link": (answered(403, b"URL signature expired"), PLAIN),
    "403 that says so, of a kind without an end": (answered(403, SAYS), FIGMA),
    "a page past its end": (brought(HTML), PAST),
    "JSON past its end": (brought(b'{"error": "x"}'), PAST),
    "text past its end": (brought(b"gone", "text/plain"), PAST),
    "a page that says so": (brought(b"<p>jwt expired</p>"), PLAIN),
    "a redirect to another host past its end": (RedirectForbidden("x"), PAST),
    "a host that does not answer, by a redirect, past its end": (elsewhere(OriginError("down")), PAST),
    "a host that is slow, by a redirect, past its end": (elsewhere(OriginTimeout("slow")), PAST),
}


@table(("error", "info"), ENDED.values(), ids=ENDED.keys())
def test_link_has_ended(error: ImgkeepError, info: object) -> None:
    told = explain(error, info, NOW)  # type: ignore[arg-type]
    assert isinstance(told, SourceExpired)
    assert told.origin_status == getattr(error, "origin_status", None)
    assert "says" not in str(told) or "the origin says" in str(told)
    assert not told.refusal


ALIVE = {
    "400 before its end": (answered(400), FRESH),
    "400 of a plain link": (answered(400, b"bad request"), PLAIN),
    "403 of a plain link": (answered(403), PLAIN),
    "403 of a kind without an end": (answered(403), FIGMA),
    "408 past its end": (answered(408), PAST),
    "429 past its end": (answered(429, SAYS), PAST),
    "500 past its end": (answered(500, SAYS), PAST),
    "a timeout past its end": (OriginTimeout("slow"), PAST),
    "a page before its end": (brought(HTML), FRESH),
    "a PDF past its end": (brought(b"%PDF-1.7", "application/pdf"), PAST),
    "bytes called text past its end": (brought(b"\x00\x01\x02", "text/plain"), PAST),
    "words too far behind": (answered(400, bytes(READ_BYTES) + SAYS), FRESH),
    "a redirect to another host before its end": (RedirectForbidden("x"), FRESH),
    "a host that does not answer, by a redirect, before its end": (elsewhere(OriginError("down")), FRESH),
    "a host that does not answer past its end": (OriginError("down"), PAST),
    "a host that fails for the moment, by a redirect, past its end": (elsewhere(answered(503)), PAST),
    "a refused address past its end": (SourceForbidden("x"), PAST),
}


@table(("error", "info"), ALIVE.values(), ids=ALIVE.keys())
def test_nothing_is_known_of_the_link(error: ImgkeepError, info: object) -> None:
    assert explain(error, info, NOW) is error  # type: ignore[arg-type]


def test_error_image_is_passed_along() -> None:
    error = answered(403)
    error.image = ("image/png", b"png")
    told = explain(error, PAST, NOW)
    assert isinstance(told, OriginError)
    assert told.image == ("image/png", b"png")


@table(
    ("status", "info", "size"),
    [
        (400, FRESH, READ_BYTES),
        (400, PLAIN, READ_BYTES),
        (403, PLAIN, READ_BYTES),
        (403, FIGMA, READ_BYTES),
        (400, PAST, 0),
        (403, FRESH, 0),
        (404, PAST, 0),
        (429, FRESH, 0),
        (500, FRESH, 0),
        (200, PLAIN, 0),
    ],
)
def test_body_is_read_only_where_it_can_change_the_answer(status: int, info: object, size: int) -> None:
    assert refusal_size(status, info, NOW) == size  # type: ignore[arg-type]


def test_retry_later_is_no_refusal() -> None:
    assert [status for status in range(100, 600) if refuses(status)] == [
        status for status in range(400, 500) if status not in {408, 421, 425, 429}
    ]
    assert not refuses(None)


@table(
    ("media_type", "beginning", "page"),
    [
        ("", HTML, True),
        ("image/png", b"\xef\xbb\xbf\n  <html>", True),
        ("image/png", b"<?xml version='1.0'?>", True),
        ("image/png", b'[{"a": 1}]', True),
        ("text/html", b"", True),
        ("text/plain", b"expired", True),
        ("application/json", b"null", True),
        ("application/problem+json", b"x", True),
        ("application/xhtml+xml", b"x", True),
        ("application/octet-stream", b"expired", False),
        ("image/png", b"\x89PNG", False),
        ("text/html", b"\x89PNG\x00", False),
        ("", b"< 5", False),
    ],
)
def test_page_is_recognised_by_its_beginning_or_type(media_type: str, beginning: bytes, *, page: bool) -> None:
    assert is_page(media_type, beginning) is page


@pytest.mark.parametrize("table", BUILT_IN.endings.tables, ids=lambda table: table.name)
def test_each_service_says_so_in_its_examples(table: object) -> None:
    ending = read_endings([{**{name: getattr(table, name) for name in ("name", "source", "date", "says", "examples")}}])
    for text in ending.tables[0].says:
        assert ending.match(b"x" * 100 + text.upper().encode())
    for example in ending.tables[0].examples:
        assert ending.match(example.encode()), example
        assert isinstance(explain(answered(400, example.encode()), PLAIN, NOW), SourceExpired)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
        b"<Error><Code>SignatureDoesNotMatch</Code></Error>",
        b'{"statusCode":"404","error":"not_found","message":"Object not found"}',
        b"<p>This coupon has expired</p>",
    ],
)
def test_other_words_say_nothing(body: bytes) -> None:
    assert not BUILT_IN.endings.match(body)


def test_endings_are_checked() -> None:
    with pytest.raises(ValueError, match="length >= 8"):
        read_endings([{"name": "x", "source": "y", "date": "2026-01-01", "says": ["short"], "examples": []}])
    assert PAST.expires_at == NOW - timedelta(minutes=20)
