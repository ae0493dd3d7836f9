"""Delays between attempts: each one doubles, and a random part spreads the attempts of many callers."""

from __future__ import annotations


def backoff_s(attempts: int, *, first_s: float, longest_s: float, draw: float) -> float:
    """
    Return the seconds to wait after a failed attempt: never less than `first_s`, up to half as much again as
    `longest_s`.

    Args:
        attempts: Number of failed attempts before this one.
        first_s: Delay after the first failure.
        longest_s: Delay after many failures.
        draw: Random number from 0 to 1.
    """
    return float(min(first_s * 2.0 ** min(attempts, 64), longest_s)) * (1 + draw / 2)
