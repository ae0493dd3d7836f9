"""Delays between attempts: each doubles the one before, and a random part keeps many attempts from coming at once."""

from __future__ import annotations


def backoff_s(attempts: int, *, first_s: float, longest_s: float, draw: float) -> float:
    """
    Return the seconds to wait after a failed attempt: never less than `first_s`, up to half as much again as
    `longest_s`.

    Args:
        attempts: How many have failed before this one.
        first_s: The delay after the first.
        longest_s: The delay after many.
        draw: A random number from 0 to 1.
    """
    return float(min(first_s * 2.0 ** min(attempts, 64), longest_s)) * (1 + draw / 2)
