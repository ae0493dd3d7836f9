"""What the tests of commands share: a data folder, and commands in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.__main__ import main
from tests.support.program import environment

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.commands import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder of a command, which does not exist yet."""
    return tmp_path / "data"


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, as `run` does in another: much quicker."""

    def run_here(*arguments: str, **settings: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder.parent)
        with monkeypatch.context() as here:
            for name, value in environment(folder, **settings).items():
                here.setenv(name, value)
            try:
                status = main(arguments)
            except SystemExit as exit_:  # argparse's way
                status = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run_here
