"""
Sizes and durations as people write them: `512MiB`, `1h`, `1h30m`. A plain number stays bytes or seconds.

Rules:
- The name of a setting has its unit: `bytes` in it means a size, `_s` at its end a duration.
- `kB`, `MB`, `GB`, `TB` are powers of 1000 and `KiB`, `MiB`, `GiB`, `TiB` powers of 1024 (IEC 80000-13), in any case.
  A bare `k`, `M` or `G` is refused, because programs disagree about its meaning.
- Reading is exact: a size must be a whole number of bytes.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final, Literal, TypeAlias

Unit: TypeAlias = Literal["size", "duration"]

TEXT_CHARS_MAX: Final = 64
"""Maximum length of a number with its unit; the longest sensible one has half of it."""

_SIZES: Final = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_DURATIONS: Final = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
    "w": Fraction(604_800),
}
FORMS: Final = {
    "size": "a number of bytes, or one with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, like 512MiB",
    "duration": "a number of seconds, or one with ms, s, m, h, d or w, like 1h or 1h30m",
}
"""The forms of each unit, for messages."""

_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+)", re.IGNORECASE)
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+) ?", re.IGNORECASE)


def unit_of(key: str) -> Unit | None:
    """Return the unit of a setting by its name; `None`: it has none."""
    if "bytes" in key.split("_"):
        return "size"
    return "duration" if key.endswith("_s") else None


def read_quantity(text: str, unit: Unit) -> int | float:
    """
    Return bytes or seconds.

    Raises:
        ValueError: The text has none of the forms. The message lists them.
    """
    text = text.strip()
    value = _read(text, unit) if len(text) <= TEXT_CHARS_MAX else None
    if value is None:
        raise ValueError(f"expected {FORMS[unit]}")
    if value.denominator == 1:
        return int(value)
    if unit == "size":
        raise ValueError(f"expected a whole number of bytes; {FORMS[unit]}")
    return float(value)


def _read(text: str, unit: Unit) -> Fraction | None:
    if not text.isascii():
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    if unit == "size":
        size = _SIZE.fullmatch(text)
        factor = None if size is None else _SIZES.get(size[2].lower())
        return None if size is None or factor is None else Fraction(size[1]) * factor
    total, position = Fraction(0), 0
    former: Fraction | None = None
    while position < len(text):
        part = _PART.match(text, position)
        length = None if part is None else _DURATIONS.get(part[2].lower())
        if part is None or length is None or (former is not None and length >= former):
            return None  # each unit once, the longest first: 30m1h is a mistake more often than a habit
        total, position, former = total + Fraction(part[1]) * length, part.end(), length
    return total if former is not None else None
