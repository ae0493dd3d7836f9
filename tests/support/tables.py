"""
Tables of cases that one test goes through.

`pytest.mark.parametrize` makes a test of each case. That costs 5 ms: each process of a run collects it, sets it up and
reports it. Where a case takes microseconds, the rows of a table are one fact, and one test.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FAILURES_MAX = 20
"""Maximum number of failed cases that one test reports."""


def table(
    names: str | Sequence[str], cases: Iterable[Any], ids: Iterable[object] | Callable[[Any], object] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Run the function once for each case, in one test; arguments as those of `pytest.mark.parametrize`.

    All cases run, also after one that fails. They share the fixtures, so it is for functions that leave nothing.
    """
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = list(_read_rows(arguments, cases, ids))
    assert rows, "a table without cases tests nothing"

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, **fixtures: Any) -> None:
            failures = []
            for name, row in rows:
                try:
                    function(*args, **fixtures, **row)
                except Exception as error:  # noqa: BLE001 - as pytest's own loop does
                    error.add_note(f"case: {name}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                message = f"{len(failures)} of {len(rows)} cases of {function.__name__} failed"
                raise ExceptionGroup(message, failures[:FAILURES_MAX])

        signature = inspect.signature(function)
        left = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        assert len(left) == len(signature.parameters) - len(arguments), f"{function.__name__} has no such arguments"
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]  # what pytest asks for
        return run

    return decorate


def _read_rows(
    arguments: Sequence[str], cases: Iterable[Any], ids: Iterable[object] | Callable[[Any], object] | None
) -> Iterable[tuple[object, dict[str, Any]]]:
    """Yield the name and the arguments of each case."""
    names = None if ids is None or callable(ids) else iter(ids)
    for case in cases:
        values, own = case, None
        if isinstance(case, type(pytest.param())):
            assert not case.marks, "a case of a table has no marks"
            values, own = (case.values if len(arguments) > 1 else case.values[0]), case.id
        row = dict(zip(arguments, values if len(arguments) > 1 else [values], strict=True))
        given = next(names) if names is not None else None
        yield own or given or ", ".join(f"{name}={repr(value)[:100]}" for name, value in row.items()), row
