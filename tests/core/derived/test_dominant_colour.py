"""The dominant colour of a picture."""

from __future__ import annotations

import pytest

from imgkeep.core.derived.dominant_colour import dominant_colour

RED = bytes((250, 0, 0, 255))
DARK_RED = bytes((226, 2, 0, 255))
BLUE = bytes((0, 0, 255, 255))
GLASS = bytes((0, 255, 0, 127))


@pytest.mark.parametrize(
    ("pixels", "colour"),
    [
        pytest.param(RED, "fa0000", id="one pixel"),
        pytest.param(RED * 2 + BLUE, "fa0000", id="the more frequent one"),
        pytest.param(RED + DARK_RED + BLUE, "ee0100", id="the mean of similar ones"),
        pytest.param(RED + GLASS * 9, "fa0000", id="what cannot be seen does not count"),
        pytest.param(GLASS, "ffffff", id="nothing can be seen"),
        pytest.param(RED + BLUE, "0000ff", id="equally many: always the same one"),
        pytest.param(BLUE + RED, "0000ff", id="in any order"),
    ],
)
def test_most_frequent_colour_is_found(pixels: bytes, colour: str) -> None:
    assert dominant_colour(pixels) == colour
