"""Regular expressions do what they say on every Python that we run on."""

from __future__ import annotations

import re
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import pytest

from imgkeep.core import rewrite
from imgkeep.core.rewrite.patterns import many

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("pattern", "text", "end"),
    [
        (many("ab?c"), "abcaca", 5),
        (many("[^-]++|-(?!-)") + "--", "a-b--", 5),
        (many(f"<{many('a=b')}>"), "<a=b><a=ba=<", 5),
        (many("a"), "", 0),
    ],
)
def test_round_that_fails_half_way_leaves_nothing(pattern: str, text: str, end: int) -> None:
    match = re.match(pattern, text)
    assert match is not None
    assert match.end() == end


def parts(parsed: object) -> Iterator[tuple[str, object]]:
    """Walk over what `re` has made of a pattern; what is in it comes as operations and their arguments."""
    if isinstance(parsed, tuple) and len(parsed) == 2 and type(parsed[0]).__name__ == "_NamedIntConstant":
        yield str(parsed[0]), parsed[1]
    if isinstance(parsed, (tuple, list)) or type(parsed).__name__ == "SubPattern":
        for part in parsed:  # type: ignore[attr-defined] # a SubPattern is a sequence
            yield from parts(part)


def loops(pattern: re.Pattern[str]) -> Iterator[list[tuple[object, object]]]:
    parse = import_module("re._parser").parse
    for operation, argument in parts(parse(pattern.pattern, pattern.flags)):
        if operation == "POSSESSIVE_REPEAT":
            assert isinstance(argument, tuple)
            yield list(argument[2])


def test_no_pattern_backtracks_within_a_repetition() -> None:
    modules = [import_module(f"{rewrite.__name__}.{each.name}") for each in iter_modules(rewrite.__path__)]
    patterns = {each for module in modules for each in vars(module).values() if isinstance(each, re.Pattern)}
    bodies = [body for pattern in patterns for body in loops(pattern)]
    assert len(patterns) > 30
    assert len(bodies) > 50
    for body in bodies:
        assert not any(what == "SUBPATTERN" and group[0] is not None for what, group in parts(body)), body  # type: ignore[index]
        (what, argument), *more = body
        assert not more, body
        if str(what) not in {"IN", "LITERAL", "NOT_LITERAL", "ANY"}:
            assert str(what) == "BRANCH", body
            assert str(argument[1][-1]) in {"[(ASSERT_NOT, (1, []))]", "[(FAILURE, ())]"}, body  # type: ignore[index]
