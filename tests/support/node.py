"""Node.js, with our module in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.program import ROOT, cannot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[..., Any]

STATIC = ROOT / "proxy" / "imgkeep" / "web" / "static"
CALLER = Path(__file__).with_name("call.mjs")


def need_node() -> str:
    return shutil.which("node") or cannot("Node.js is not installed")


def copy_module(folder: Path) -> Path:
    """Copy the module as its documentation says, and return where it is."""
    return Path(shutil.copy(STATIC / "imgkeep.js", folder / "imgkeep.mjs"))


@contextmanager
def calling(module: Path) -> Iterator[Call]:
    """Give a function that calls those of the module by their names; what they throw is a `ValueError`."""
    words = [need_node(), str(CALLER), str(module)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def call(name: str, *arguments: object) -> Any:
            ask.write(json.dumps([name, *arguments]) + "\n")
            ask.flush()
            told = json.loads(answers.readline())
            if "error" in told:
                raise ValueError(told["error"])
            return told.get("value")

        yield call
        ask.close()
