"""
Links with an invalid signature: the origin's response to one shows whether it checks signatures.

Rules:
- The probe replaces only characters of the signature itself, each by another one of its alphabet: length and shape
  stay. An origin could refuse a changed expiry or key for another reason, which would prove nothing about the
  signature.
- The link with the invalid signature has the same identity and expiry as the genuine link; otherwise it is not used.
- If the signature cannot be separated from the text beside it, there is no such link.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.core.identity import engine
from imgkeep.core.identity.canonical import read_nested
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from imgkeep.core.identity.engine import Reading
    from imgkeep.core.identity.providers import ProviderRules
    from imgkeep.core.identity.rule import Rule
    from imgkeep.core.records import Source

REPLACED_CHARS: Final = 8
"""
Number of replaced characters of a signature, before its last one: an origin that compares signatures cannot overlook
them. In the last character of base64 not all bits count, and a strict decoder refuses one with the other bits set: that
would be another error.
"""
RUN_CHARS_MIN: Final = 6
"""Minimum length of a run of letters and digits: a shorter one is a word, a version or a number."""

_PIECES: Final = re.compile(r"%(?:25)*[0-9A-Fa-f]{2}|[A-Za-z0-9]+", re.ASCII)
_ALPHABETS: Final = (
    ("0123456789",),
    ("0123456789abcdef",),
    ("0123456789ABCDEF",),
    ("0123456789", "abcdef", "ABCDEF"),
)
_CLASSES: Final = ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def make_invalid_signature(
    source: Source, now: datetime, provider_rules: ProviderRules, draw: Callable[[int], int]
) -> Source | None:
    """
    Return a link with the same identity and expiry, but an invalid signature; `None` if there is none.

    Args:
        source: The genuine link.
        now: As for `identify`.
        provider_rules: Rules to read the link by.
        draw: Returns a cryptographically random number below the given one.
    """
    info = engine.identify(source, now, provider_rules)
    for run in _list_runs(source, provider_rules):
        if source.target.count(run) != 1:
            continue
        start = max(0, len(run) - 1 - REPLACED_CHARS)
        changed = run[:start] + _replace_all(run[start:-1], _alphabet_of(run), draw) + run[-1]
        url = f"{source.scheme}://{source.authority}{source.target.replace(run, changed)}"
        invalid = read_source(url)
        if engine.identify(invalid, now, provider_rules) == info:
            return invalid
    return None


def _list_runs(source: Source, provider_rules: ProviderRules, depth: int = 0) -> Iterator[str]:
    """Yield the runs that may be the signature, the most likely first."""
    reading = engine.read(source, provider_rules, depth)
    for rule in reading.rules:
        if rule.grants:
            for text in _list_texts(rule, reading):
                yield from _runs_of(text)
    if depth < engine.NESTED_MAX:
        for rule in reading.rules:
            inner = _read_inner(rule, reading)
            if inner is not None:
                yield from _list_runs(inner, provider_rules, depth + 1)


def _list_texts(rule: Rule, reading: Reading) -> list[str]:
    """
    Return the texts that a rule leaves out of the identity as a signature: members of its group, parts of the path.
    """
    timed = {name for _, names in rule.expires for name in names}
    members = [name for group in rule.groups for name, _ in group if name not in rule.parameters.keep]
    texts = {reading.values[name] for name in members if name in reading.values}
    ends = {reading.values[name] for name in members if name in timed and name in reading.values}
    # An expiry may share a value with the signature; a value of its own is no signature.
    texts = texts - ends or {reading.values[name] for name in rule.parameters.drop if name in reading.values} or texts
    if rule.table.becomes and not texts:
        texts = set(reading.path.split("/"))
    return sorted(texts, key=lambda text: (-len(text), text))


def _read_inner(rule: Rule, reading: Reading) -> Source | None:
    name = rule.table.nested
    if not name or name.startswith("<") or name not in reading.values:
        return None  # in a path the inner link is in base64, or beside a signature of the proxy's own
    found = read_nested(reading.values[name])
    return None if found is None else found[0]


def _runs_of(text: str) -> list[str]:
    """Return the runs of letters and digits, the last one first: a signature follows what it signs."""
    runs = [piece[0] for piece in _PIECES.finditer(text) if not piece[0].startswith("%")]
    return [run for run in reversed(runs) if len(run) >= RUN_CHARS_MIN]


def _alphabet_of(run: str) -> tuple[str, ...]:
    """Return the smallest alphabet with all characters of `run`, as classes: each character stays in its class."""
    return next((classes for classes in _ALPHABETS if set(run) <= set("".join(classes))), _CLASSES)


def _replace_all(text: str, classes: tuple[str, ...], draw: Callable[[int], int]) -> str:
    """Return the text with every character replaced by another one of its class."""
    replaced = []
    for char in text:
        chars = next(each for each in classes if char in each)
        replaced.append(chars[(chars.index(char) + 1 + draw(len(chars) - 1)) % len(chars)])
    return "".join(replaced)
