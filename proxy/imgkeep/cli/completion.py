"""`completion`: prints a script for a shell. shtab writes it once, so that no key press starts Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import shtab

from imgkeep.cli.parser import make_parser

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from imgkeep.cli.invocation import Invocation

_KINDS: Final = {"file": shtab.FILE, "folder": shtab.DIRECTORY}


def run(invocation: Invocation) -> int:
    parser = make_parser()
    _mark(parser)
    sys.stdout.write(shtab.complete(parser, shell=invocation.arguments.shell).rstrip("\n") + "\n")
    return 0


def _mark(parser: ArgumentParser) -> None:
    """Mark for shtab the arguments that name files and folders."""
    for action in parser._actions:  # noqa: SLF001 - argparse shows its actions nowhere else; shtab reads them there too
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _mark(command)
        kind = getattr(action, "kind", "file" if action.dest == "config" else None)
        if action.dest == "data":
            kind = "folder"
        if kind is not None:
            action.complete = _KINDS[kind]  # type: ignore[attr-defined] # the attribute that shtab looks for
