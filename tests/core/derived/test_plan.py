"""Sizes of derived pictures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.derived.options import SIDE_MAX, Fit, Gravity, PictureOptions
from imgkeep.core.derived.plan import Plan, place, plan, turned
from imgkeep.core.records import PixelSize


def size(text: str) -> PixelSize:
    width, _, height = text.partition("x")
    return PixelSize(int(width), int(height))


@pytest.mark.parametrize(
    ("original", "options", "expected"),
    [
        pytest.param("400x300", {}, "400x300", id="as it is"),
        pytest.param("400x300", {"width": 200}, "200x150", id="width"),
        pytest.param("400x300", {"height": 30}, "40x30", id="height"),
        pytest.param("400x300", {"width": 100, "height": 100}, "100x75", id="both"),
        pytest.param("400x300", {"width": 800}, "400x300", id="never enlarged"),
        pytest.param("65535x1", {"width": 800}, "800x1", id="no side below one pixel"),
        pytest.param("3x2", {"width": 2}, "2x1", id="rounded"),
        pytest.param("400x300", {"width": 800, "fit": Fit.CONTAIN}, "800x600", id="enlarged"),
        pytest.param("20000x10", {}, "8000x4", id="a long original fits into the maximum"),
        pytest.param("65535x1", {"height": 1000, "fit": Fit.CONTAIN}, "8000x1", id="and what would become longer"),
    ],
)
def test_whole_picture_keeps_its_ratio(original: str, options: dict[str, Any], expected: str) -> None:
    assert plan(size(original), PictureOptions(**options), 8000) == Plan(None, size(expected), size(expected))


@pytest.mark.parametrize(
    ("original", "wanted", "expected"),
    [
        pytest.param("400x300", "100x100", (None, "133x100", "100x100"), id="cut after scaling"),
        pytest.param("400x300", "40x300", (None, "400x300", "40x300"), id="not scaled"),
        pytest.param("400x300", "800x800", ("300x300", "800x800", "800x800"), id="cut before it is enlarged"),
        pytest.param("400x300", "800x600", (None, "800x600", "800x600"), id="enlarged whole"),
        pytest.param("65535x1", "400x400", ("1x1", "400x400", "400x400"), id="one pixel is left"),
        pytest.param("400x300", "16000x8000", ("400x200", "8000x4000", "8000x4000"), id="above the maximum"),
        pytest.param("1x1", "3x5", (None, "3x5", "3x5"), id="nothing to cut"),
    ],
)
def test_cover_fills_both_sides(original: str, wanted: str, expected: tuple[str | None, str, str]) -> None:
    cut, scaled, canvas = expected
    box = size(wanted)
    options = PictureOptions(width=box.width, height=box.height, fit=Fit.COVER)
    assert plan(size(original), options, 8000) == Plan(size(cut) if cut else None, size(scaled), size(canvas))


def test_contain_fills_up_to_both_sides() -> None:
    options = PictureOptions(width=200, height=200, fit=Fit.CONTAIN)
    assert plan(PixelSize(400, 300), options, 8000) == Plan(None, PixelSize(200, 150), PixelSize(200, 200))


@pytest.mark.parametrize(
    ("gravity", "expected"),
    [
        (Gravity.CENTER, (20, 5)),
        (Gravity.NORTH, (20, 0)),
        (Gravity.NORTHEAST, (40, 0)),
        (Gravity.EAST, (40, 5)),
        (Gravity.SOUTHEAST, (40, 10)),
        (Gravity.SOUTH, (20, 10)),
        (Gravity.SOUTHWEST, (0, 10)),
        (Gravity.WEST, (0, 5)),
        (Gravity.NORTHWEST, (0, 0)),
    ],
)
def test_gravity_places_the_smaller_rectangle(gravity: Gravity, expected: tuple[int, int]) -> None:
    assert place(PixelSize(100, 50), PixelSize(60, 40), gravity) == expected


def test_quarter_turn_exchanges_sides() -> None:
    assert turned(PixelSize(3, 2)) == PixelSize(2, 3)


sides = st.integers(1, 65_535)
wanted_sides = st.none() | st.integers(1, SIDE_MAX)


@given(
    original=st.builds(PixelSize, sides, sides),
    width=wanted_sides,
    height=wanted_sides,
    fit=st.sampled_from(Fit),
    side_max=st.integers(1, SIDE_MAX),
)
def test_every_plan_can_be_carried_out(
    original: PixelSize, width: int | None, height: int | None, fit: Fit, side_max: int
) -> None:
    found = plan(original, PictureOptions(width=width, height=height, fit=fit), side_max)
    assert 1 <= found.canvas.width <= side_max
    assert 1 <= found.canvas.height <= side_max
    if found.cut is not None:
        assert 1 <= found.cut.width <= original.width
        assert 1 <= found.cut.height <= original.height
        assert found.scaled == found.canvas
    if fit is Fit.COVER and width and height:
        assert found.scaled.width >= found.canvas.width
        assert found.scaled.height >= found.canvas.height
        assert found.scaled.pixels <= max(original.pixels, found.canvas.pixels)
    else:
        assert found.scaled.width <= found.canvas.width
        assert found.scaled.height <= found.canvas.height
