"""The nouns keep their secrets."""

from __future__ import annotations

import pytest

from proxy.core.model import Format, PixelSize, Source
from proxy.core.source import read_source


@pytest.mark.parametrize(
    "url",
    ["https://example.com/a?b=1", "http://example.com:8080/", "https://[2606:4700::1]/a", "http://[2606:4700::1]:81/a"],
)
def test_a_source_writes_its_url_again(url: str) -> None:
    assert read_source(url).url == url


def test_a_source_shows_its_host_only() -> None:
    assert repr(Source("https", "example.com", 443, "/secret?sig=1")) == "<Source at example.com>"


def test_pixels_are_the_area() -> None:
    assert PixelSize(640, 480).pixels == 307_200


def test_media_types_and_extensions_are_unlike() -> None:
    assert (
        len({format_.media_type for format_ in Format}) == len({format_.extension for format_ in Format}) == len(Format)
    )
