"""What `pip install imgkeep` brings, without the extra `server`: links, signatures, and the middleware of a page."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from typing import TYPE_CHECKING

import pytest

from tests.support.program import ROOT, environment

if TYPE_CHECKING:
    from pathlib import Path

LINK = "https://img.example.com/a.png?Expires=1&Signature=a"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HIDING = """
import sys

class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hiding())
"""
"""Hides the modules in `hidden`, as if they were not installed."""


def name_of(requirement: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def find_base() -> set[str]:
    """Return the distributions that imgkeep without extras installs."""
    found: set[str] = set()
    waiting = [name_of(each) for each in PROJECT["dependencies"]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [name_of(each) for each in requires(name) or () if "extra ==" not in each]
    return found


def run(code: str, folder: Path) -> tuple[int, str, str]:
    """Run Python code that sees the base dependencies alone."""
    base = find_base() | {"imgkeep"}
    hidden = {module for module, owners in packages_distributions().items() if base.isdisjoint(map(name_of, owners))}
    settings = environment(folder, security__signing_keys="k" * 20)
    done = subprocess.run(
        [sys.executable, "-c", f"hidden = {hidden!r}\n{HIDING}\n{code}"],
        cwd=folder.parent,
        env=settings,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def command(*words: str) -> str:
    return f"from imgkeep.__main__ import main\nsys.exit(main({words!r}))"


@pytest.mark.parametrize(
    "words", [("--version",), ("--help",), ("inspect", LINK), ("sign", LINK), ("token",)], ids=lambda words: words[0]
)
def test_command_needs_no_server(tmp_path: Path, words: tuple[str, ...]) -> None:
    status, out, err = run(command(*words), tmp_path / "data")
    assert (status, err) == (0, "")
    assert out


@pytest.mark.parametrize(
    "words",
    [
        ("serve",),
        ("demo",),
        ("check",),
        ("list",),
        ("save", LINK),
        ("list", "--server", "http://127.0.0.1:1"),
        ("completion", "bash"),
    ],
    ids=" ".join,
)
def test_missing_server_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    status, out, err = run(command(*words), tmp_path / "data")
    assert (status, out) == (2, "")
    told = rf"imgkeep: `imgkeep {words[0]}` needs \w+, which is not installed: pip install 'imgkeep\[server\]'\n"
    assert re.fullmatch(told, err), err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("module", ["wsgi", "asgi"])
def test_middleware_needs_no_server(tmp_path: Path, module: str) -> None:
    status, _, err = run(f"from imgkeep.integrations.{module} import Imgkeep", tmp_path / "data")
    assert (status, err) == (0, "")


def test_core_needs_the_base_dependencies_alone(tmp_path: Path) -> None:
    code = (
        "import pkgutil, imgkeep.core\nfrom importlib import import_module\n"
        "for each in pkgutil.walk_packages(imgkeep.core.__path__, 'imgkeep.core.'): import_module(each.name)"
    )
    assert run(code, tmp_path / "data") == (0, "", "")
