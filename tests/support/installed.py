"""Programs that `scripts/install-test-programs` installs, on the PATH or in its cache."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.support.program import ROOT, cannot

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgkeep-tests"  # noqa: TID251 - tests read what they run in
_PLACES = (
    Path(sys.executable).parent,
    _CACHE / "bin",
    _CACHE / "python" / "bin",
    _CACHE / "node_modules" / ".bin",
    ROOT / "node_modules" / ".bin",
)


def find(program: str) -> str | None:
    """Return the path of a program, `None` where it is not installed."""
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(map(str, _PLACES)))


def require(program: str) -> str:
    """Return the path of a program, or skip the test."""
    found = find(program)
    if found is None:
        cannot(f"{program} is not installed (scripts/install-test-programs)")
    return found
