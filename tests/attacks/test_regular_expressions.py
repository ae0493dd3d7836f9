"""Regular expressions that would read a stranger's text over and over, found by how they are built."""

from __future__ import annotations

import importlib
import pkgutil
import re
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

import pytest

import imgkeep
from imgkeep.core.identity.canonical import read_place

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = frozenset(range(256))
CATEGORIES = {
    sre.CATEGORY_SPACE: r"\s", sre.CATEGORY_NOT_SPACE: r"\S", sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D", sre.CATEGORY_WORD: r"\w", sre.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip
MANY = 256
"""So often and more is without end."""
OPERATORS = {"imgkeep.core.host_patterns._WITH_PORT"}
"""They read what the operator wrote."""
SKIPPED = ("imgkeep.__main__", "imgkeep.database.migrations", "imgkeep.integrations.django")


def chars_of(node: tuple[Any, Any]) -> frozenset[int]:
    """Return which bytes one item of a pattern matches; none for what is no single character."""
    kind, value = node
    if kind is sre.LITERAL:
        return frozenset({value})
    if kind is sre.NOT_LITERAL:
        return ALL - {value}
    if kind is sre.ANY:
        return ALL
    found: set[int] = set()
    for part, what in value if kind is sre.IN else ():
        if part is sre.LITERAL:
            found.add(what)
        elif part is sre.RANGE:
            found.update(range(what[0], min(what[1], 255) + 1))
        elif part is sre.CATEGORY:
            found.update(byte for byte in ALL if re.match(CATEGORIES[what], chr(byte), re.ASCII))
    negated = kind is sre.IN and value[0][0] is sre.NEGATE
    return ALL - found if negated else frozenset(found)


def repeated(node: tuple[Any, Any]) -> frozenset[int]:
    """Return what is repeated without end and given back again."""
    kind, value = node
    endless = kind in {sre.MAX_REPEAT, sre.MIN_REPEAT} and value[1] >= MANY and len(value[2]) == 1
    return chars_of(value[2][0]) if endless else frozenset()


def quadratic(pattern: Any) -> Iterator[str]:
    """Yield each character that a flood can be made of: `A* c B*` and more, where A and B match `c` as well."""
    items = list(pattern)
    for at, (kind, value) in enumerate(items[1:-2], 1):
        around = repeated(items[at - 1]) & repeated(items[at + 1])
        if kind is sre.LITERAL and value in around:
            yield chr(value)
    for kind, value in items:
        inner = [value[2]] if kind in {sre.MAX_REPEAT, sre.MIN_REPEAT} else []
        inner = [value[3]] if kind is sre.SUBPATTERN else value[1] if kind is sre.BRANCH else inner
        for each in inner:
            yield from quadratic(each)


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    for module in pkgutil.walk_packages(imgkeep.__path__, "imgkeep."):
        if not module.name.startswith(SKIPPED):
            for name, value in vars(importlib.import_module(module.name)).items():
                if type(value) is re.Pattern and f"{module.name}.{name}" not in OPERATORS:
                    yield f"{module.name}.{name}", value


def test_no_pattern_reads_a_flood_from_each_of_its_characters() -> None:
    """A link of 8 KB of opening brackets took half a second of the event loop."""
    found = dict(patterns())
    assert len(found) > 100
    assert {
        name: where for name, each in found.items() if (where := list(quadratic(_parser.parse(each.pattern))))
    } == {}


@pytest.mark.parametrize(("pattern", "where"), [(r"[^/]*\[[^\]/]*\]", ["["]), (r"[^/]*\[[^\[\]/]*\]", [])])
def test_such_a_pattern_is_found(pattern: str, where: list[str]) -> None:
    assert list(quadratic(_parser.parse(pattern))) == where


@pytest.mark.parametrize("text", ["[::1]/a", "http://[::1]:80/a", "[[::1]/a"])
def test_bracketed_host_is_found_in_a_link(text: str) -> None:
    place = read_place(text)
    assert place is not None
    assert "::1" in place
