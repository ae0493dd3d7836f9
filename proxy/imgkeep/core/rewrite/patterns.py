"""Regular expressions that never backtrack, so that they are linear."""

from __future__ import annotations


def many(body: str) -> str:
    """
    Return a pattern for a possessive repetition of `body`.

    `body` must have no capturing group: its value after many rounds is wrong, or `re` raises an exception. The
    alternative that never matches is for Python before 3.11.5, where a failing last round would leave a half in the
    match (https://github.com/python/cpython/issues/106052).
    """
    return rf"(?:{body}|(?!))*+"
