"""
The XML of the service's answers as a flat list of elements.

Rules: no document type, hence no entities; depth, number, names and tags of elements are bounded, because each element
costs more memory than its bytes, and a tag more time; the caller bounds the size. Anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHUNK_BYTES: Final = 65_536
DEPTH_MAX: Final = 16
"""Maximum depth of elements; the service's lists have five levels."""
ELEMENTS_MAX: Final = 100_000
"""Maximum number of elements; a list of a thousand blobs has some 25,000."""
TAG_BYTES_MAX: Final = 131_072
"""
Maximum size of a tag, or a little less. One of 14 MB with a million attributes takes ten seconds, and no other thread
gets on meanwhile.
"""
NAME_CHARS_MAX: Final = 64
"""Maximum length of the name of an element; the service's have 30 characters at most."""


@dataclass(frozen=True, slots=True)
class Element:
    """An element: the names from the root to it, its attributes, and its own text."""

    path: str
    attributes: Mapping[str, str]
    text: str


def read_elements(data: bytes) -> Sequence[Element]:
    """
    Return all elements of a document, in the order of their ends.

    Raises:
        ValueError: It is no XML of that kind.
    """
    parser = expat.ParserCreate("utf-8")  # whatever the document declares
    parser.buffer_text = True
    names: list[str] = []
    opened: list[tuple[Mapping[str, str], list[str]]] = []
    found: list[Element] = []

    def start(name: str, attributes: Mapping[str, str]) -> None:
        if len(names) == DEPTH_MAX or len(found) == ELEMENTS_MAX or len(name) > NAME_CHARS_MAX:
            raise ValueError("elements are too many, nested too deeply, or have long names")
        names.append(name)
        opened.append((attributes, []))

    def end(_name: str) -> None:
        attributes, texts = opened.pop()
        found.append(Element("/".join(names), attributes, "".join(texts)))
        names.pop()

    def add_text(text: str) -> None:
        opened[-1][1].append(text)

    def refuse(*_: object) -> None:
        raise ValueError("there is a document type")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = add_text
    parser.StartDoctypeDeclHandler = refuse
    try:
        for begin in range(0, len(data), CHUNK_BYTES):
            parser.Parse(data[begin : begin + CHUNK_BYTES], False)
            if min(len(data), begin + CHUNK_BYTES) - parser.CurrentByteIndex > TAG_BYTES_MAX:
                raise ValueError("a tag is too long")
        parser.Parse(b"", True)
    except expat.ExpatError:
        raise ValueError("it is no XML") from None
    return found
