"""Delays between attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.backoff import backoff_s


@pytest.mark.parametrize(
    ("attempts", "draw", "expected"), [(0, 0, 2), (0, 1, 3), (1, 0, 4), (4, 0, 32), (5, 0, 60), (5, 1, 90)]
)
def test_delay_doubles_up_to_the_longest(attempts: int, draw: float, expected: float) -> None:
    assert backoff_s(attempts, first_s=2, longest_s=60, draw=draw) == expected


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_delay_stays_within_its_bounds(attempts: int, draw: float) -> None:
    assert 6 <= backoff_s(attempts, first_s=6, longest_s=600, draw=draw) <= 900
