"""A parser of arguments that suggests a command or an option for a misspelt one."""

from __future__ import annotations

import argparse
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

SIMILARITY_MIN: Final = 0.6
"""Minimum ratio of difflib for a word that may be misspelt: `lst` is 0.86 of `list`."""
WORD_CHARS_MAX: Final = 64
"""Maximum length of a word that is compared with others: a longer one is no misspelling."""


class CommandParser(argparse.ArgumentParser):
    """A parser that suggests a command or an option for a misspelt one."""

    def parse_args(  # type: ignore[override] # the only form of call here
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        commands = next(action.choices for action in self._actions if isinstance(action.choices, dict))
        for word in takewhile(lambda word: word not in commands, args):
            # Without this check the value of an unknown option would be read as the command.
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                self._refuse_option(word)
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            commands[arguments.command]._refuse_option(rest[0])  # noqa: SLF001 - of this class
        return arguments

    def _refuse_option(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        if not word.startswith("-"):
            self.error(f"one argument too many: {word!r}")
        self.error(f"there is no option {name}{_suggest(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = "command" if action.metavar == "COMMAND" else "choice"
            listed = (
                "; `imgkeep --help` lists them" if kind == "command" else f"; there are {', '.join(action.choices)}"
            )
            hint = _suggest(str(value), action.choices) or listed
            raise argparse.ArgumentError(None if kind == "command" else action, f"there is no {kind} {value!r}{hint}")


def _suggest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only mistakes need it

    found = get_close_matches(word, list(known), n=1, cutoff=SIMILARITY_MIN) if len(word) <= WORD_CHARS_MAX else []
    return f"; did you mean {found[0]}?" if found else ""
