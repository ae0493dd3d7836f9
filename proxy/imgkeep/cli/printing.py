"""The output of commands: JSON lines for programs, aligned columns for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


def print_json(out: TextIO, facts: Mapping[str, object]) -> None:
    """Print one object on one line."""
    out.write(f"{as_line(facts)}\n")


def as_line(facts: Mapping[str, object]) -> str:
    """Return an object as one line of JSON."""
    return msgspec.json.encode(_dated(facts)).decode()


def readable_time(moment: datetime) -> str:
    """Return a time in the form of the API and all commands: RFC 3339, UTC, to the second; logs add milliseconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _dated(facts: object) -> object:
    if isinstance(facts, datetime):
        return readable_time(facts)
    if isinstance(facts, dict):
        return {name: _dated(value) for name, value in facts.items()}
    return [_dated(value) for value in facts] if isinstance(facts, (list, tuple)) else facts


def print_facts(out: TextIO, facts: Mapping[str, object]) -> None:
    """Print `name  value` lines, with escapes for characters that a terminal would obey."""
    width = max(map(len, facts))
    out.writelines(f"{name:<{width}}  {_readable(value)}\n" for name, value in facts.items())


def _readable(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return readable_time(value) if isinstance(value, datetime) else printable(str(value))


def printable(text: str) -> str:
    """Return a text with escapes for characters that a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def readable_bytes(size: float) -> str:
    """Return a size for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
