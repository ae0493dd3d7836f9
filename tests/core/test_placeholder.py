"""Placeholders: a PNG in a data URL that has the pixels of the ThumbHash."""

from __future__ import annotations

from base64 import b64decode, b64encode
from io import BytesIO

import pytest
from PIL import Image

from imgkeep.core.placeholder import placeholder_url
from imgkeep.core.thumbhash import InvalidThumbHash, decode, encode

PICTURE = bytes(value for place in range(240) for value in (place, 255 - place, 90, 255 if place % 3 else 0))


def test_placeholder_is_a_png_of_the_hash() -> None:
    thumbhash = encode(20, 12, PICTURE)
    kind, _, data = placeholder_url(b64encode(thumbhash).decode()).partition(",")
    image = Image.open(BytesIO(b64decode(data)))
    image.load()
    expected = decode(thumbhash)
    assert kind == "data:image/png;base64"
    assert (image.mode, image.size) == ("RGBA", (expected.width, expected.height))
    assert image.tobytes() == expected.rgba
    assert len(data) < 8000


@pytest.mark.parametrize("text", ["", "x", "é", "2gcKFIJ5eHg4h4eHdw", "AAAA AAAA", "AAAAAAAA\n"])
def test_text_that_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(InvalidThumbHash):
        placeholder_url(text)
