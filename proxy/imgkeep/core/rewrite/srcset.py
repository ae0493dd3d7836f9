"""
A finder of links in a `srcset` (https://html.spec.whatwg.org/multipage/images.html#parsing-a-srcset-attribute).

A link ends at white space, so it may contain commas, but not begin or end with one. Descriptors end at a comma outside
of parentheses. The finder also returns candidates with invalid descriptors, because rewriting these does no harm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite.patterns import many

if TYPE_CHECKING:
    from collections.abc import Iterator

_CANDIDATE: Final = re.compile(r"[\t\n\f\r ,]*+([^\t\n\f\r ]++)")
_DESCRIPTORS: Final = re.compile(many(r"[^,(]++|\([^)]*+\)?"))


def find_links(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each link."""
    end = 0
    while match := _CANDIDATE.match(text, end):
        start, end = match.span(1)
        link = match[1].rstrip(",")
        yield start, start + len(link)
        if len(link) == end - start and (descriptors := _DESCRIPTORS.match(text, end)):
            end = descriptors.end()
