"""A stored picture that is cut off is told from a whole one by a few bytes."""

from __future__ import annotations

import pytest
from PIL import Image

from imgkeep.core.derived.names import PictureName
from imgkeep.core.records import Digest, Format
from imgkeep.derived.cut_pictures import is_cut
from tests.support.derive import encoded, make, picture_of, quarters

DIGEST = Digest("1" * 64)
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")


async def cut(body: bytes, name: PictureName) -> bool:
    """Return whether a file passes for cut off."""

    async def read(offset: int, size: int) -> bytes:
        assert 0 <= offset < len(body)
        return body[offset : offset + size]

    return await is_cut(name, len(body), read)


@pytest.mark.parametrize("format_", FORMATS)
async def test_whole_picture_is_not_cut_and_each_beginning_is(format_: str) -> None:
    original, to = ("GIF", "GIF") if format_ == "GIF" else ("PNG", format_)
    picture = picture_of(encoded(quarters(), original), original, "full", to)
    name = PictureName(DIGEST, "full", Format[format_])
    assert not await cut(picture, name)
    assert all([await cut(picture[:size], name) for size in (0, 100, len(picture) - 1)])


@pytest.mark.parametrize("format_", FORMATS)
async def test_original_in_place_of_its_picture_is_whole(format_: str) -> None:
    noise = Image.effect_noise((90, 64), 90).convert("RGB")
    original = encoded(noise, format_, quality=9) + b"more"
    _, picture = make(original, format_, "full", format_, smaller_than=1)
    assert not await cut(picture, PictureName(DIGEST, "full", Format[format_]))


async def test_bytes_behind_the_end_are_allowed_where_metadata_stay() -> None:
    jpeg = encoded(quarters(), "JPEG") + b"more"
    assert not await cut(jpeg, PictureName(DIGEST, "w9-keep", Format.JPEG))
    assert await cut(jpeg, PictureName(DIGEST, "w9", Format.JPEG))
    avif = encoded(quarters(), "AVIF") + bytes(20)
    assert not await cut(avif, PictureName(DIGEST, "keep", Format.AVIF))


async def test_marker_is_whole() -> None:
    assert not await cut(b"", PictureName(DIGEST, "w9", Format.WEBP, negotiated=True))
    for other in (b"hello", b"\0" * 40):
        assert not await cut(other, PictureName(DIGEST, "w9", Format.AVIF)), "it never was a picture"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\0\0\0\1mdat" + (40).to_bytes(8, "big"), False),
        (b"\0\0\0\1mdat" + (41).to_bytes(8, "big"), True),
        (b"\0\0\0\0mdat", False),
        (b"\0\0\0\x08free" * 40, False),
    ],
    ids=["long", "long and cut", "to the end", "many"],
)
async def test_lengths_of_boxes(head: bytes, *, expected: bool) -> None:
    assert await cut(head.ljust(40, b"\0"), PictureName(DIGEST, "w9", Format.AVIF)) is expected
