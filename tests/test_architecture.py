"""`docs/architecture.md` describes the tree as it is: it names every package and module, and only files that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "proxy" / "imgkeep"
PAGE: Final = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MAP: Final = PAGE.split("\n## Packages and modules\n", 1)[1].split("\n## ", 1)[0]
INTEGRATIONS_OF_DJANGO: Final = "integrations/django/"
MIGRATIONS: Final = "database/migrations/"


def modules() -> list[str]:
    """Return the modules that the page names, but for those of Django and of migrations: it names them together."""
    paths = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return [path[:-3] for path in paths if not path.startswith((INTEGRATIONS_OF_DJANGO, MIGRATIONS))]


def test_every_module_is_in_the_map() -> None:
    words = set(re.findall(r"\w+", MAP))
    assert not [module for module in modules() if module.rsplit("/", 1)[-1] not in words]


def test_every_package_is_in_the_map() -> None:
    packages = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    rows = set(re.findall(r"^\| `([\w/]+)/` \|", MAP, re.MULTILINE))
    missing = {name for name in packages - rows if not f"{name}/".startswith((INTEGRATIONS_OF_DJANGO, MIGRATIONS))}
    assert not missing
    assert rows <= packages


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|toml))`", PAGE)) - {"origin/http1.py"}  # it names one that is gone
    assert not [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()]


def test_every_name_in_the_map_exists() -> None:
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    names = {path.stem for path in paths} | {part for path in paths for part in path.parts[:-1]}
    cells = (line.split(" | ")[0] for line in MAP.splitlines() if line.startswith("| `"))
    named = {name for cell in cells for quoted in re.findall(r"`([^`]*)`", cell) for name in re.findall(r"\w+", quoted)}
    assert not named - names


def test_every_row_of_a_table_has_all_its_cells() -> None:
    cells = 0
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        number = re.sub(r"`[^`]*`", "", line).count("|")
        assert number == (cells or number), line
        cells = number
