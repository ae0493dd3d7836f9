"""An eye on what this process opens."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_WATCHERS: list[list[str]] = []
_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _WATCHERS and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        if not path.startswith("/proc/self/"):  # the metrics of the process, every few seconds
            _WATCHERS[-1].append(path)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that this process opens, as the interpreter's audit events tell (PEP 578)."""
    global _hooked  # noqa: PLW0603 - a hook cannot be removed, so there is one for all tests
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _WATCHERS.append([])
    yield _WATCHERS[-1]
    _WATCHERS.pop()
