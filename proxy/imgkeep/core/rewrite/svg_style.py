"""
The style sheet of a `<style>` in SVG, where it is no raw text but markup: what stands in the text and in the CDATA
sections right in the element, taken together. Comments between them are no part of it.
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
    """Return where the element whose content begins at `at` ends; `None` if it does not, or holds other elements."""
    match = _WHOLE.match(text, at)
    whole = match is not None and (match[2] is not None or (is_last and match.end() == len(text)))
    return match.end(1) if match is not None and whole else None


def read(source: str) -> Value:
    """Read what `find_end` has found."""
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
    """Write a link in the place of `source`, so that it is the same in text and in a CDATA section."""
    # What reaches into or out of a section cannot be changed without it.
    return source if "<" in source or _SECTION[1] in source else link.replace("&", "\\26 ")
