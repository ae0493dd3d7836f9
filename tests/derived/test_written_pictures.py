"""What a derive process has written is what its answer says, or no picture."""

from __future__ import annotations

from tempfile import TemporaryFile

import pytest
from PIL import Image

from imgkeep.core.records import Format
from imgkeep.derived.messages import Derived
from imgkeep.derived.written_pictures import is_as_stated
from tests.support.derive import encoded, picture_of, quarters
from tests.support.picture_program import HEADS

FORMATS = [Format[name] for name in HEADS]


def fits(body: bytes, format_: Format, size: int | None = None, side_max: int = 100) -> bool:
    """Return whether a file passes for a picture."""
    with TemporaryFile() as file:
        file.write(body)
        file.flush()
        answer = Derived(size=len(body) if size is None else size, width=80, height=60)
        return is_as_stated(answer, format_, side_max, file.fileno())


@pytest.mark.parametrize("format_", FORMATS)
def test_pictures_are_what_they_are(format_: Format) -> None:
    picture = picture_of(encoded(quarters(), "PNG"), "PNG", "full", format_.name)
    assert fits(picture, format_)
    assert not any(fits(picture, other) for other in FORMATS if other is not format_)
    assert not fits(picture, format_, size=len(picture) - 1)
    assert not fits(picture, format_, side_max=79)


@pytest.mark.parametrize(
    "body",
    [b"", b"<script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n<html>"],
)
@pytest.mark.parametrize("format_", FORMATS)
def test_other_files_are_no_pictures(format_: Format, body: bytes) -> None:
    assert not fits(body, format_)


def test_size_may_be_behind_metadata_that_stay() -> None:
    image = Image.effect_noise((80, 60), 60)
    jpeg = encoded(image, "JPEG")
    segment = b"\xff\xe1\xff\xff" + b"http://ns.adobe.com/xmp/extension/\0".ljust(65_533, b" ")
    assert fits(jpeg[:2] + segment * 6 + jpeg[2:], Format.JPEG)
