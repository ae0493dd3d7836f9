"""Which responses are rewritten, and their headers."""

from __future__ import annotations

import pytest

from imgkeep.integrations.responses import Plan, plan, revalidated, rewritten
from tests.support.tables import table

HTML = ("Content-Type", "text/html; charset=utf-8")

ALONE = {
    "no type": ("GET", 200, []),
    "XHTML": ("GET", 200, [("Content-Type", "application/xhtml+xml")]),
    "an image": ("GET", 200, [("Content-Type", "image/png")]),
    "JSON": ("GET", 200, [("Content-Type", "application/json")]),
    "two types": ("GET", 200, [HTML, ("content-type", "image/png")]),
    "early hints": ("GET", 103, [HTML]),
    "no content": ("GET", 204, [HTML]),
    "a reset": ("GET", 205, [HTML]),
    "a part": ("GET", 206, [HTML, ("Content-Range", "bytes 0-1/2")]),
    "not modified": ("GET", 304, [HTML]),
    "a range of something": ("GET", 200, [HTML, ("Content-Range", "bytes 0-1/2")]),
    "framed already": ("GET", 200, [HTML, ("Transfer-Encoding", "chunked")]),
    "no-transform": ("GET", 200, [HTML, ("Cache-Control", "public, no-transform")]),
    "NO-TRANSFORM": ("GET", 200, [HTML, ("Cache-Control", "public"), ("cache-control", "NO-TRANSFORM")]),
    "a download": ("GET", 200, [HTML, ("Content-Disposition", 'Attachment; filename="a.html"')]),
    "from the server's disk": ("GET", 200, [HTML, ("X-Accel-Redirect", "/files/a.html")]),
    "signed": ("GET", 200, [HTML, ("Signature-Input", 'sig1=("content-digest")')]),
    "brotli": ("GET", 200, [HTML, ("Content-Encoding", "br")]),
    "zstd": ("GET", 200, [HTML, ("Content-Encoding", "zstd")]),
    "coded twice": ("GET", 200, [HTML, ("Content-Encoding", "gzip, gzip")]),
    "coded on two lines": ("GET", 200, [HTML, ("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")]),
    "two lengths": ("GET", 200, [HTML, ("Content-Length", "1"), ("Content-Length", "2")]),
    "no length": ("GET", 200, [HTML, ("Content-Length", "many")]),
    "an empty length": ("GET", 200, [HTML, ("Content-Length", "")]),
}  # fmt: skip


@table("name", ALONE)
def test_response_is_left_alone(name: str) -> None:
    method, status, headers = ALONE[name]
    assert plan(method, status, headers) is None


@pytest.mark.parametrize("status", [200, 404, 500, 226])
def test_pages_of_any_status_are_rewritten(status: int) -> None:
    assert plan("POST", status, [HTML]) == Plan(has_body=True, length=None, coding="identity", charset="utf-8")


def test_response_to_head_has_no_body() -> None:
    assert plan("HEAD", 200, [HTML, ("Content-Length", "7")]) == Plan(
        has_body=False, length=7, coding="identity", charset="utf-8"
    )


@pytest.mark.parametrize(
    ("kind", "charset"),
    [
        ("text/html", None),
        (" TEXT/HTML ;charset=latin1", "latin1"),
        ('text/html; level=1; Charset = "utf-16le"', "utf-16le"),
        ("text/html; charset=a; charset=b", "a"),
        ("text/html; charset=", None),
    ],
)
def test_media_type_names_the_encoding(kind: str, charset: str | None) -> None:
    planned = plan("GET", 200, [("Content-Type", kind)])
    assert planned is not None
    assert planned.charset == charset


@pytest.mark.parametrize(
    ("coding", "known"), [("gzip", "gzip"), ("X-GZip", "gzip"), ("deflate", "deflate"), ("identity", "identity")]
)
def test_these_codings_are_undone(coding: str, known: str) -> None:
    planned = plan("GET", 200, [HTML, ("content-encoding", coding)])
    assert planned is not None
    assert planned.coding == known


def test_fields_about_the_old_bytes_are_removed() -> None:
    headers = [
        HTML,
        ("Content-Length", "10"),
        ("ETag", '"abc"'),
        ("Content-MD5", "x"),
        ("Digest", "x"),
        ("content-digest", "x"),
        ("Repr-Digest", "x"),
        ("Accept-Ranges", "bytes"),
        ("Content-Security-Policy", "img-src 'self'"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    ]
    stay = [("Content-Security-Policy", "img-src 'self'"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    assert rewritten(headers, 12) == [HTML, ("Content-Length", "12"), ("ETag", 'W/"abc"'), *stay]
    assert rewritten(headers, None) == [HTML, ("ETag", 'W/"abc"'), *stay]


def test_length_is_absent_where_the_application_gives_none() -> None:
    assert rewritten([HTML], 12) == [HTML]


@pytest.mark.parametrize(("tag", "kept"), [('W/"a"', ['W/"a"']), ('"a"', ['W/"a"']), ("a", []), ('"a', []), ("", [])])
def test_etag_is_weak_or_absent(tag: str, kept: list[str]) -> None:
    assert [value for _, value in rewritten([("ETag", tag)], None)] == kept


@pytest.mark.parametrize(
    ("status", "asked", "told"),
    [
        (304, 'W/"a"', 'W/"a"'),
        (304, '"b", W/"a"', 'W/"a"'),
        (304, '"a"', '"a"'),
        (304, '"W/"a"', '"a"'),
        (304, "*", '"a"'),
        (304, "", '"a"'),
        (200, 'W/"a"', '"a"'),
    ],
)
def test_not_modified_calls_the_page_as_its_client_does(status: int, asked: str, told: str) -> None:
    assert revalidated(status, [("ETag", '"a"'), ("Vary", "x")], asked) == [("ETag", told), ("Vary", "x")]
