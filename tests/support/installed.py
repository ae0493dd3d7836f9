"""Programs that `scripts/install-test-programs` installs, in its cache or on the PATH."""

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
    Path("/usr/sbin"),
)


def find(program: str) -> str | None:
    """Return the path of a program, `None` where it is not installed."""
    return shutil.which(program, path=os.pathsep.join(map(str, _PLACES))) or shutil.which(program)


def require(program: str, source: str = "scripts/install-test-programs") -> str:
    """Return the path of a program, or skip the test."""
    found = find(program)
    if found is None:
        cannot(f"{program} is not installed ({source})")
    return found
