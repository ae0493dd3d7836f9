"""The program and its documentation use the words of `docs/glossary.md`, and name the actor of a sentence."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.support.tables import table

ROOT: Final = Path(__file__).parents[1]
GLOSSARY: Final = ROOT / "docs" / "glossary.md"
SUFFIXES: Final = frozenset({".css", ".html", ".js", ".md", ".py", ".toml", ".ts"})

ACTORS: Final = ("anybody", "anyone", "everybody", "everyone", "nobody", "somebody", "someone", "whoever")
"""Pronouns that stand where a sentence should name the client, the worker, the store."""

NARROWER: Final = {
    # Words with other senses in plain English or in a standard; the pattern finds the sense that the glossary replaces.
    "board": r"boards? (a|the) (fill|flight)|boarded|boarding",
    "cached": r"CachedFiles|cached answers?",
    "claim": r"claim(s|ed)? (a|the|its|their) keys?|holders? of a claim|\bClaims\b",
    "collapse": r"collapse\.py|collaps(e|es|ing) (requests|fetches|misses)",  # RFC 9211 has the parameter `collapsed`
    "depart": r"depart(s|ed|ure)?",
    "height": r"heights? of (a|the) (tide|body|file)",  # an image has a height, too
    "kept": r"\bis kept\b(?! (open|alive|apart|in memory|from))|outcome=\W*kept"
    r"|\b(kept|keeps|keeping) (an |new |all )?images?\b|\bimages? (is|are|was|were) kept\b",
    "land": r"lands|landed",
    "leave": r"leav(e|es|ing) the (cache|shelf)",  # clients leave, and attributes are left out
    "let go": r"lets? go of (a|the|its) (claim|lease|key)",
    "prepared": r"prepared (answers?|responses?)|PreparedAnswers",  # SQL has prepared statements
    "refused": r"refused (digests?|pictures?|images?)|REFUSED_DIGESTS",  # connections and URLs are refused, too
    "register": r"\bRegister\b",
    "rest": r"\brests\b",
    "ride": r"\brides?\b",
    "rise": r"\bTide\.rise|\brises? of the (tide|body)",
    "shelf": r"(?i)\bshel(f|ves)\b",
    "site": r"(?<!-)\bSite\b|\bSITE\b|\bsite\.py",  # pages belong to sites, and Fetch has `Sec-Fetch-Site`
    "tower": r"\bTower\b",
    "trial": r"\btrials?\b",
    "turn": r"\bTurn\b|whose turn|tak(e|es|ing) (turns|its turn|a turn)",
    "works": r"\bWorks\b(?! (with|on|behind|in))|works\.py",
}

EXCEPTIONS: Final[dict[str, tuple[str, ...]]] = {
    # file: phrases in it that are right
    "docs/glossary.md": ("*",),
    "docs/performance.md": ("`crowd`", "bench/crowds.py"),  # a row of the benchmark, by its name
    "proxy/imgkeep/core/layout.py": ("v1/refused",),  # the stored layout is public
    "proxy/imgkeep/config/schema.py": (
        '"catalog"',
    ),  # the former name of a setting, in the message that names the new one
    "proxy/imgkeep/database/sqlite_file.py": ("catalog.db",),  # the former name of a file, which is taken over
}


def _banned() -> dict[str, str]:
    """Return word and regular expression of all that the glossary does not use."""
    words = [
        word.strip()
        for line in GLOSSARY.read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| word ")
        for word in line.split("|")[2].split(",")
        if word.strip()
    ]
    return {
        word: NARROWER.get(word, rf"(?i)\b{re.escape(word).replace(' ', '[ _-]')}(s|d|ed|ing)?\b") for word in words
    }


def _texts() -> list[Path]:
    trees = [path for tree in ("proxy", "docs") for path in (ROOT / tree).rglob("*") if path.suffix in SUFFIXES]
    return sorted(path for path in [*trees, ROOT / "README.md"] if "__pycache__" not in path.parts)


@cache
def _lines() -> dict[str, list[str]]:
    """Return the lines of each text by its name."""
    return {str(path.relative_to(ROOT)): path.read_text("utf-8").splitlines() for path in _texts()}


def find(pattern: str) -> list[str]:
    """Return `file:line: text` of each line in which the pattern stands, but for what is excepted."""
    found = []
    expression = re.compile(pattern)
    for name, lines in _lines().items():
        excepted = EXCEPTIONS.get(name, ())
        if "*" in excepted:
            continue
        for number, line in enumerate(lines, 1):
            if expression.search(line) and not any(phrase in line for phrase in excepted):
                found.append(f"{name}:{number}: {line.strip()}")
    return found


@table(("word", "pattern"), [pytest.param(*item, id=item[0]) for item in _banned().items()])
def test_glossary_word_is_used_instead(word: str, pattern: str) -> None:
    found = find(pattern)
    assert not found, f"docs/glossary.md has another word for {word!r}:\n" + "\n".join(found)


@pytest.mark.parametrize("word", ACTORS)
def test_sentence_names_its_actor(word: str) -> None:
    found = find(rf"(?i)\b{word}\b")
    assert not found, f"{word!r} names no actor:\n" + "\n".join(found)


def test_each_narrower_pattern_belongs_to_a_word_of_the_glossary() -> None:
    assert set(NARROWER) <= set(_banned())
