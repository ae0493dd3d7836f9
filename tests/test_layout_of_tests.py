"""Tests share helpers through `tests/support` alone, so that each module of tests stands for itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
TESTS: Final = ROOT / "tests"
PRIVATE: Final = re.compile(r"^ *(?:from|import) (?:tests\b(?!\.support\b)|\.).*", re.MULTILINE)
"""An import from `tests` that names another package than `tests.support`, also for type checkers alone."""


def test_tests_import_helpers_from_support_alone() -> None:
    found = {
        str(path.relative_to(ROOT)): imports
        for path in sorted(TESTS.rglob("*.py"))
        if (imports := PRIVATE.findall(path.read_text("utf-8")))
    }
    assert found == {}


def test_support_has_no_tests() -> None:
    assert [path.name for path in (TESTS / "support").rglob("test_*.py")] == []
