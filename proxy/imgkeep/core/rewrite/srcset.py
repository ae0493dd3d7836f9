"""
Where the links of a `srcset` are (https://html.spec.whatwg.org/multipage/images.html#parsing-a-srcset-attribute).

A link reaches to white space, so it may hold commas, but not begin or end with one. Descriptors reach to a comma that
stands in no parentheses. Candidates with descriptors that nobody understands are links, too: leaving them alone would
be of no use to anybody.
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
    """Yield where each link begins and ends."""
    end = 0
    while match := _CANDIDATE.match(text, end):
        start, end = match.span(1)
        link = match[1].rstrip(",")
        yield start, start + len(link)
        if len(link) == end - start and (descriptors := _DESCRIPTORS.match(text, end)):
            end = descriptors.end()
