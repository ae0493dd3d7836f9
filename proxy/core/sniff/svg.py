"""
SVG (SVG 2, XML 1.0): an XML document whose root element is `svg`, in SVG's namespace or in none.

The parser is expat, kept on a short leash:
- It never resolves an external entity and never reads an external DTD.
- Entities hold plain text (Illustrator writes its namespaces that way) and may not expand beyond a budget, so that
  no entity multiplies another.
- It never asks Python for a codec by the name in the document: UTF-8 and UTF-16 it knows, and everything else that
  is written today holds ASCII, so its markup reads the same as Latin-1.
- What it keeps in memory (open elements, names) is bounded by the number of `<` and `=` that it may see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from proxy.core.model import Format
from proxy.core.sniff.fields import HEAD_BYTES_MAX, Cut, begins, pixel_size

if TYPE_CHECKING:
    from proxy.core.model import PixelSize
    from proxy.core.sniff.fields import Buffer

NAMESPACE: Final = "http://www.w3.org/2000/svg"
DECLARATIONS_MAX: Final = 256  # of entities and attributes; Illustrator declares about 20
EXPANSION_BYTES_MAX: Final = 16_777_216  # of all entities together, in the worst case
MARKS_MAX: Final = 1_048_576  # `<` and `=`: tags and attributes; expat keeps about 100 bytes for each
TOKEN_BYTES_MAX: Final = 2_097_152  # one tag, without what is passed over; expat takes about 10 ms for it at once
PASS_OVER_AFTER_BYTES: Final = 65_536  # of one tag: no name is as long, so what goes on must be a value
PIECE_BYTES: Final = 65_536  # given to expat in one call: well under a millisecond

_BLANKS: Final = b"\t\n\r "
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_OPENINGS: Final = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")  # a byte order mark, or none (XML 1.0, appendix F)
_DECLARED: Final = re.compile(rb"<\?xml[^>]{1,200}?encoding[\t\n\r ]{0,9}=[\t\n\r ]{0,9}[\"']([\w.-]{1,40})[\"']")
_UTF8: Final = frozenset({b"utf-8", b"utf8"})
_INERT: Final = re.compile(rb"[\t\n\r !#-%(-;=?-~]*")  # ASCII without quotes, `&`, `<`, `>`: base64, path data
_LENGTH: Final = re.compile(r"\s*\+?(\d{1,9}(?:\.\d*)?|\.\d+)(e[+-]?\d{1,2})?(px|pt|pc|mm|cm|in|)\s*", re.IGNORECASE)
_PIXELS_MAX: Final = 2**31 - 1
_PIXELS_PER_UNIT: Final = {"": 1.0, "px": 1.0, "pt": 96 / 72, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}


def recognise(head: bytes) -> Format | None:
    root = _root(head)
    return Format.SVG if root is not None and root.is_svg else None


def measure(body: Buffer) -> PixelSize | None:
    root = _root(body)
    if root is None:
        return None
    sides = [_pixels(root.attributes.get(name, "")) for name in ("width", "height")]
    if not all(sides):
        box = root.attributes.get("viewBox", "").replace(",", " ").split()
        sides = [_pixels(side) for side in box[2:]] if len(box) == 4 else [0, 0]
    return pixel_size(*sides)


def is_whole(body: Buffer) -> bool:
    opening = _opening(bytes(body[:HEAD_BYTES_MAX]))
    if opening is None:
        return False
    fed, encoding = opening
    document = _Document(encoding)
    marks = references = 0
    while fed < len(body):
        # A tag that does not end is read again from its start, so it gets twice as much with every turn.
        pending_bytes = document.pending_bytes
        piece = bytes(body[fed : fed + max(PIECE_BYTES, pending_bytes)])
        fed += len(piece)
        # A piece from the middle of a value says nothing about the end: a photograph in base64 is passed over.
        is_inside = document.root is not None and pending_bytes >= PASS_OVER_AFTER_BYTES and fed < len(body)
        if is_inside and _INERT.fullmatch(piece):
            continue
        marks += piece.count(b"<") + piece.count(b"=")
        references += piece.count(b"&")
        if marks > MARKS_MAX or not document.feed(piece, is_last=fed == len(body)):
            return False
        if references * document.entity_size > EXPANSION_BYTES_MAX or document.pending_bytes > TOKEN_BYTES_MAX:
            return False
        if document.root is None and fed > HEAD_BYTES_MAX:
            return False
    return document.root is not None and document.root.is_svg


def _root(body: Buffer) -> _Root | None:
    """The root element; None if there is none or something else comes first. Raises: Cut."""
    head = bytes(body[:HEAD_BYTES_MAX])
    opening = _opening(head)
    if opening is None:
        return None
    start, encoding = opening
    document = _Document(encoding)
    for at in range(start, len(head), PIECE_BYTES):
        is_well_formed = document.feed(head[at : at + PIECE_BYTES], is_last=False)
        if document.root is not None:
            return document.root
        if not is_well_formed:
            return None
    raise Cut


def _opening(head: bytes) -> tuple[int, str] | None:
    """Where the document begins, and its encoding; None if it is no XML. Raises: Cut."""
    if any(begins(head, opening) for opening in _UTF16_OPENINGS):
        return 0, "UTF-16"
    document = head[len(_UTF8_MARK) if begins(head, _UTF8_MARK) else 0 :].lstrip(_BLANKS)
    if not begins(document, b"<"):
        return None
    declared = _DECLARED.match(document)
    is_utf8 = declared is None or declared[1].lower() in _UTF8
    return len(head) - len(document), "UTF-8" if is_utf8 else "ISO-8859-1"


def _pixels(length: str) -> int:
    """A length in pixels at 96 to the inch (CSS Values 3, 6.2); 0 if it is relative or none."""
    found = _LENGTH.fullmatch(length)
    if found is None:
        return 0
    pixels = round(float(found[1] + (found[2] or "")) * _PIXELS_PER_UNIT[found[3].lower()])
    return pixels if pixels <= _PIXELS_MAX else 0


@dataclass(frozen=True, slots=True)
class _Root:
    """The root element as its start tag says."""

    is_svg: bool
    attributes: dict[str, str]


class _Document:
    """One pass of expat over a document; `root` is there as soon as its start tag is complete."""

    def __init__(self, encoding: str) -> None:
        self.root: _Root | None = None
        self.entity_size = 0
        self._declarations = 0
        self._fed = 0
        self._parser = expat.ParserCreate(encoding, " ")
        # From 2.6 on expat holds back what it could tell, so as not to read a long tag over and over: `is_whole` sees
        # to that by itself, and a root that is told late would be none.
        getattr(self._parser, "SetReparseDeferralEnabled", bool)(False)
        self._parser.StartElementHandler = self._begin
        self._parser.EntityDeclHandler = self._declare_entity
        self._parser.AttlistDeclHandler = self._declare_attribute

    @property
    def pending_bytes(self) -> int:
        """Bytes of the last token, which has no end yet."""
        return self._fed - max(self._parser.CurrentByteIndex, 0)

    def feed(self, piece: bytes, *, is_last: bool) -> bool:
        """Whether the document is still well-formed XML of the kind that we read."""
        self._fed += len(piece)
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError:
            return False
        return True

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, local = name.rpartition(" ")
        self.root = _Root(local == "svg" and namespace in {"", NAMESPACE}, attributes)
        self._parser.StartElementHandler = None

    def _declare_entity(self, _name: str, _is_parameter: bool, value: str | None, *_: str | None) -> None:  # noqa: FBT001 - expat's call
        self._count_declaration()
        if value is not None:
            self.entity_size = max(self.entity_size, len(value))
            if "&" in value:
                raise expat.ExpatError("an entity refers to another")

    def _declare_attribute(self, *_: str | int | None) -> None:
        self._count_declaration()

    def _count_declaration(self) -> None:
        self._declarations += 1
        if self._declarations > DECLARATIONS_MAX:
            raise expat.ExpatError("too many declarations")
