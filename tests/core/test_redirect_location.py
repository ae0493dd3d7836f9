"""Where a redirect leads; `tests/origin/test_location.py` follows them all."""

from __future__ import annotations

import pytest

from imgkeep.core.errors import InvalidSource, SourceForbidden
from imgkeep.core.redirect_location import Ambiguous, read_location
from imgkeep.core.source_url import read_source

HERE = read_source("https://a.example:8443/b/c.png?d=e")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (b"/x.png", "https://a.example:8443/x.png"),
        (b"x.png", "https://a.example:8443/b/x.png"),
        (b"?y", "https://a.example:8443/b/c.png?y"),
        (b"#y", "https://a.example:8443/b/c.png?d=e"),
        (b"//h.example/x", "https://h.example/x"),
        (b"http://h.example/x#y", "http://h.example/x"),
        (b"http://h.example\\@127.0.0.1/x", "http://h.example/@127.0.0.1/x"),
        (b"\t /caf\xe9\xc3\xa9\x1f.png ", "https://a.example:8443/caf%E9%C3%A9%1F.png"),
        ("//bücher.example/".encode(), "https://xn--bcher-kva.example/"),
    ],
)
def test_location_is_resolved(location: bytes, url: str) -> None:
    assert read_location([location], HERE).url == url
    assert read_location([location, location], HERE).url == url


@pytest.mark.parametrize("values", [[], [b""], [b" \t"], [b"/a", b"/b"]])
def test_nowhere_and_several_places_are_ambiguous(values: list[bytes]) -> None:
    with pytest.raises(Ambiguous):
        read_location(values, HERE)


@pytest.mark.parametrize("value", [b"ftp://h.example/", b"data:,", b"http://", b"http://\xff.example/"])
def test_other_text_than_an_http_url_is_invalid(value: bytes) -> None:
    with pytest.raises(InvalidSource):
        read_location([value], HERE)


@pytest.mark.parametrize("value", [b"http://u@h.example/", b"//127.1/", b"//%31%32%37.0.0.1/"])
def test_location_is_forbidden_where_a_link_is(value: bytes) -> None:
    with pytest.raises(SourceForbidden):
        read_location([value], HERE)
