"""Regular expressions that never go back over what they have read, so that they are linear."""

from __future__ import annotations


def many(body: str) -> str:
    """
    Return a pattern for `body`, as often as it comes, and never less often.

    It may hold no group that captures: what those hold after many rounds is wrong, up to an exception of `re`. The
    alternative that never matches is for Python before 3.11.5, where a last round that fails half-way would leave its
    half in the match (https://github.com/python/cpython/issues/106052).
    """
    return rf"(?:{body}|(?!))*+"
