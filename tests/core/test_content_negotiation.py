"""Which form of a failure a client reads: what browsers and programs really send."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.content_negotiation import (
    FIELDS_MAX,
    FIELDS_USUAL,
    MEMBERS_MAX,
    Form,
    allow_fields,
    choose_form,
    prefers_page,
)
from imgkeep.core.http_headers import FORWARDED_HEADERS
from tests.support.accept_fields import FIREFOX_TAB, IMG, TAB
from tests.support.tables import table

OLD_FIREFOX_IMG = "image/webp,*/*"
SAFARI_IMG = "image/webp,image/avif,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"

CASES = {
    "a tab": ("GET", TAB, "document", Form.PAGE),
    "a tab without Sec-Fetch-Dest": ("GET", TAB, None, Form.PAGE),
    "a tab of Firefox": ("GET", FIREFOX_TAB, None, Form.PAGE),
    "a tab, HEAD": ("HEAD", TAB, "document", Form.PAGE),
    "an <img>": ("GET", IMG, "image", Form.IMAGE),
    "an <img> without Sec-Fetch-Dest": ("GET", IMG, None, Form.IMAGE),
    "an <img> of old Firefox": ("GET", OLD_FIREFOX_IMG, None, Form.IMAGE),
    "an <img> of Safari": ("GET", SAFARI_IMG, None, Form.IMAGE),
    "fetch()": ("GET", "*/*", "empty", Form.PROBLEM),
    "fetch() that asks for images": ("GET", IMG, "empty", Form.PROBLEM),
    "fetch() that asks for pages": ("GET", TAB, "empty", Form.PROBLEM),
    "a frame": ("GET", TAB, "iframe", Form.PROBLEM),
    "two destinations": ("GET", TAB, "document, image", Form.PROBLEM),
    "an unknown destination": ("GET", TAB, "", Form.PROBLEM),
    "a form that posts": ("POST", TAB, "document", Form.PROBLEM),
    "curl": ("GET", "*/*", None, Form.PROBLEM),
    "no Accept": ("GET", None, None, Form.PROBLEM),
    "an empty Accept": ("GET", "", None, Form.PROBLEM),
    "a program that asks for JSON": ("GET", "application/json, text/plain, */*", None, Form.PROBLEM),
    "a program that prefers JSON": ("GET", "application/problem+json, text/html;q=0.9", None, Form.PROBLEM),
    "a program that prefers pages": ("GET", "application/json;q=0.5, text/html", None, Form.PAGE),
    "images, or else a problem": ("GET", "image/*, application/problem+json;q=0.1", None, Form.PROBLEM),
    "no pages": ("GET", "text/html;q=0, */*", None, Form.PROBLEM),
    "no images": ("GET", "image/*;q=0.0, */*", None, Form.PROBLEM),
    "a malformed quality": ("GET", "text/html;q=2", None, Form.PROBLEM),
    "another parameter": ("GET", "Text/HTML ; charset=utf-8 ; Q = 0.5", None, Form.PAGE),
    "twice": ("GET", "text/html;q=0, text/html", None, Form.PAGE),
}


@table(("method", "accept", "destination", "form"), CASES.values(), ids=CASES)
def test_form_follows_the_accept_field(method: str, accept: str | None, destination: str | None, form: Form) -> None:
    assert choose_form(method, accept, destination) is form


def test_wildcard_is_no_page() -> None:
    assert not prefers_page("*/*")
    assert not prefers_page("text/*")
    assert prefers_page("text/html, */*")


def test_script_may_send_all_but_identifying_fields() -> None:
    assert allow_fields(None) == allow_fields("") == FIELDS_USUAL
    assert allow_fields("Range, X-Anything ,\ttraceparent,x-anything") == (*FIELDS_USUAL, "x-anything", "traceparent")
    refused = [*FORWARDED_HEADERS, "Authorization", "Cookie", "Via", "CDN-Loop", "X-Forwarded-Host", "Imgkeep-Peer"]
    odd = ["*", "", "a b", "a\r\nb: c", "a:b", "\xe9", "x" * 129, "<script>", '"a"']
    assert allow_fields(",".join([*refused, *odd])) == FIELDS_USUAL
    tokens = ["sentry-trace", "x!y", "x-a|b", "x~`^'&%$#*+z", "*a", "x" * 128]
    assert allow_fields(", ".join(tokens)) == (*FIELDS_USUAL, *tokens)
    assert len(allow_fields(",".join(f"x-{n}" for n in range(FIELDS_MAX * 9)))) == len(FIELDS_USUAL) + FIELDS_MAX


@given(st.text())
def test_allowed_fields_are_names(requested: str) -> None:
    assert all(re.fullmatch("[a-z0-9!#$%&'*+.^_`|~-]+", name) and name != "*" for name in allow_fields(requested))


@given(st.text(), st.one_of(st.none(), st.text()))
def test_nothing_raises(accept: str, destination: str | None) -> None:
    assert choose_form("GET", accept, destination) in Form


@pytest.mark.parametrize("piece", [",", ";", " ", "\t", "q=", "text/html;q=0.1,", ";q=0.", "a/b;c=d;"])
def test_long_field_costs_linear_time(piece: str) -> None:
    field = piece * (16_384 // len(piece))
    start = time.thread_time()
    choose_form("GET", field, None)
    assert time.thread_time() - start < 0.5
    assert prefers_page(",".join(["a/b"] * (MEMBERS_MAX - 1) + ["text/html"]))
    assert not prefers_page(",".join(["a/b"] * MEMBERS_MAX + ["text/html"]))
