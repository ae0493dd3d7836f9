"""
The style sheet of a `<style>` in SVG, which is markup and no raw text: the texts and CDATA sections directly in the
element, joined, without the comments between them.
"""

from __future__ import annotations

import re
from typing import Final

from imgkeep.core.rewrite import character_references as references
from imgkeep.core.rewrite.character_references import Value
from imgkeep.core.rewrite.patterns import many

_PART: Final = r"[^<]++|<!\[CDATA\[.*?\]\]>|<!--(?:-?>|.*?--!?>)"
_WHOLE: Final = re.compile(f"({many(_PART)})(</(?i:style)[\\t\\n\\f\\r />])?", re.DOTALL)
_PARTS: Final = re.compile(_PART, re.DOTALL)
_SECTION: Final = ("<![CDATA[", "]]>")


def find_end(text: str, at: int, *, is_last: bool) -> int | None:
    """Return the end of the content that begins at `at`; `None` if it is incomplete, or contains other elements."""
    match = _WHOLE.match(text, at)
    whole = match is not None and (match[2] is not None or (is_last and match.end() == len(text)))
    return match.end(1) if match is not None and whole else None


def read(source: str) -> Value:
    """Decode the content that `find_end` has found."""
    texts: list[str] = []
    offsets: list[int] = []
    for match in _PARTS.finditer(source):
        part, start = match[0], match.start()
        if part.startswith(_SECTION[0]):
            value, start = Value(part[len(_SECTION[0]) : -len(_SECTION[1])]), start + len(_SECTION[0])
        elif not part.startswith("<"):
            value = references.read(part, in_text=True)
        else:
            continue
        texts.append(value.text)
        offsets += (start + value.source(at, at)[0] for at in range(len(value.text)))
    return Value("".join(texts), [*offsets, len(source)])


def write(link: str, source: str) -> str:
    """Return a link to replace `source`, in a form that is valid in text and in a CDATA section."""
    # A link across the border of a section stays.
    return source if "<" in source or _SECTION[1] in source else link.replace("&", "\\26 ")
