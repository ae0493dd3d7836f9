"""How commands print: JSON lines for programs, aligned columns for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


def print_json(out: TextIO, facts: Mapping[str, object]) -> None:
    """Print one object on one line."""
    out.write(msgspec.json.encode(facts).decode() + "\n")


def print_facts(out: TextIO, facts: Mapping[str, object]) -> None:
    """Print `name  value` lines. What is not printable is escaped: a terminal must not take it for a command."""
    width = max(map(len, facts))
    out.writelines(
        f"{name:<{width}}  {'-' if value is None else _printable(str(value))}\n" for name, value in facts.items()
    )


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def readable_bytes(size: float) -> str:
    """Return a size as people write it: powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
