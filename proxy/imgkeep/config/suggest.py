"""Suggestions for misspelt settings and variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME_CHARS_MAX: Final = 128
"""Maximum length of a name that is compared with others: a longer one is no misspelling."""
SUGGESTIONS_MAX: Final = 3
"""Maximum number of settings in a hint."""
SIMILARITY_MIN: Final = 0.75
"""Minimum ratio of difflib: one letter in four may be wrong."""


def suggest(name: str, known: Sequence[str], *, separator: str) -> str:
    """
    Return "; did you mean ...?" for a name that is unknown, or nothing.

    A name is a section and a key with a separator between. For the right key with a wrong section, or without one, the
    hint names the sections that have that key.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - only mistakes need it

    if len(name) > NAME_CHARS_MAX:
        return ""
    found = get_close_matches(name, known, n=1, cutoff=SIMILARITY_MIN)
    if not found:
        key = name.rpartition(separator)[2]
        found = [each for each in known if each.rpartition(separator)[2] == key][:SUGGESTIONS_MAX]
    return f"; did you mean {' or '.join(found)}?" if found else ""
