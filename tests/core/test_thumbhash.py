"""ThumbHash: the hashes and pictures of the reference implementation, the npm package thumbhash 0.1.1."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkeep.core.thumbhash import (
    HASH_BYTES_MAX,
    SIDE_MAX,
    InvalidThumbHash,
    decode,
    encode,
)

CASES: dict[str, dict[str, Any]] = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "cases" / "thumbhash.json").read_text("utf-8"))
}
"""
By name: a picture, its hash, and what the reference reads from the hash. `rgba` of the decoded picture is null where
the file leaves it out. A picture is `flat` whose only coefficients are rounding errors.
"""


def _encode(case: dict[str, Any]) -> bytes:
    return encode(case["width"], case["height"], b64decode(case["rgba"]))


@pytest.mark.parametrize("case", [each for each in CASES.values() if "flat" not in each], ids=lambda case: case["name"])
def test_hash_is_that_of_the_reference(case: dict[str, Any]) -> None:
    assert _encode(case) == b64decode(case["thumbhash"])


@pytest.mark.parametrize("case", [each for each in CASES.values() if "flat" in each], ids=lambda case: case["name"])
def test_hash_of_one_colour_looks_like_that_of_the_reference(case: dict[str, Any]) -> None:
    thumbhash, expected = _encode(case), b64decode(case["thumbhash"])
    assert thumbhash[:5] == expected[:5]
    assert decode(thumbhash) == decode(expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decoded_picture_is_that_of_the_reference(case: dict[str, Any]) -> None:
    thumbhash, expected = b64decode(case["thumbhash"]), case["decoded"]
    picture = decode(thumbhash)
    assert (picture.width, picture.height) == (expected["width"], expected["height"])
    assert len(picture.rgba) == 4 * picture.width * picture.height
    if expected["rgba"] is not None:
        pairs = zip(picture.rgba, b64decode(expected["rgba"]), strict=True)
        assert max(abs(ours - theirs) for ours, theirs in pairs) <= 1


@pytest.mark.parametrize(
    ("width", "height", "size"), [(0, 1, 0), (1, 0, 0), (-1, -1, 4), (SIDE_MAX + 1, 1, 4 * SIDE_MAX + 4), (2, 2, 15)]
)
def test_picture_with_wrong_sides_has_no_hash(width: int, height: int, size: int) -> None:
    with pytest.raises(ValueError, match="ThumbHash"):
        encode(width, height, bytes(size))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_hash_of_any_picture_can_be_decoded(width: int, height: int, data: st.DataObject) -> None:
    rgba = data.draw(st.binary(min_size=4 * width * height, max_size=4 * width * height))
    thumbhash = encode(width, height, rgba)
    picture = decode(thumbhash)
    assert len(thumbhash) <= HASH_BYTES_MAX
    assert max(picture.width, picture.height) == 32
    assert (picture.width > picture.height) <= (width > height)


@settings(deadline=None)
@given(st.binary(max_size=HASH_BYTES_MAX + 1))
def test_any_bytes_are_a_hash_or_refused(data: bytes) -> None:
    try:
        picture = decode(data)
    except InvalidThumbHash:
        return
    assert max(picture.width, picture.height) == 32


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b64decode(CASES["broad"]["thumbhash"])[:5],
        b64decode(CASES["broad"]["thumbhash"])[:-1],
        b64decode(CASES["broad"]["thumbhash"]) + b"\0",
        bytes(3) + b"\x00" + bytes(17),
    ],
    ids=["empty", "header", "cut", "longer", "no side"],
)
def test_bytes_that_are_no_hash_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidThumbHash):
        decode(data)
