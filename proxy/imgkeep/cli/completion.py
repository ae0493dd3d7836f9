"""`completion`: what shells complete after `imgkeep`, written once by shtab, so that no key starts Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

import shtab

if TYPE_CHECKING:
    from argparse import ArgumentParser

_KINDS: Final = {"file": shtab.FILE, "folder": shtab.DIRECTORY}


def completion(parser: ArgumentParser, shell: str, *, out: TextIO) -> int:
    """Print the script for a shell."""
    _mark(parser)
    out.write(shtab.complete(parser, shell=shell).rstrip("\n") + "\n")
    return 0


def _mark(parser: ArgumentParser) -> None:
    """Tell shtab which arguments are names of files."""
    for action in parser._actions:  # noqa: SLF001 - argparse shows its actions nowhere else; shtab reads them there too
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _mark(command)
        kind = getattr(action, "kind", "file" if action.dest == "config" else None)
        if action.dest == "data":
            kind = "folder"
        if kind is not None:
            action.complete = _KINDS[kind]  # type: ignore[attr-defined] # the attribute that shtab looks for
