"""
SVG (SVG 2, XML 1.0): an XML document whose root element is `svg`, in SVG's namespace or in none.

The parser is expat, with these limits:
- It never resolves an external entity and never reads an external DTD.
- Entities contain plain text (Illustrator writes its namespaces that way) and expand to little in one call, so that no
  entity multiplies another.
- It never asks Python for a codec by the name in the document: it knows UTF-8 and UTF-16, and every other encoding in
  use contains ASCII, so its markup reads the same as Latin-1.
- All memory for the whole document is bounded: open elements and namespaces, and different names.
- It holds the interpreter while it parses a piece, so pieces are small, and a tag must not be too large for one call.
- Its handlers hold no reference to the parser: a cycle would keep both in memory until a garbage collection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from imgkeep.core.formats.binary_reader import BYTES_SCANNED_PER_STEP, HEAD_BYTES_MAX, Cut, pixel_size
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.formats.binary_reader import Body, Budget
    from imgkeep.core.records import PixelSize

NAMESPACE: Final = "http://www.w3.org/2000/svg"
DECLARATIONS_MAX: Final = 256  # of entities and attributes; Illustrator declares about 20
ENTITY_CHARS_MAX: Final = 65_536  # of one entity; a namespace has 40, a path that is used often some thousand
EXPANSION_BYTES_MAX: Final = 524_288  # of all entities in one piece, in the worst case: 5 ms
OPEN_MAX: Final = 4_096  # elements and namespaces at a time; libxml2 reads 256 elements deep
NAMES_MAX: Final = 4_096  # different ones of elements, attributes and prefixes; SVG has some 300
NAME_CHARS_MAX: Final = 1_024  # with its namespace, which expat puts in front
QUOTES_MAX: Final = 16_384  # in one tag: two for each attribute, which takes expat about a third of a microsecond
TOKEN_BYTES_MAX: Final = 524_288  # one tag, without skipped pieces; expat takes 1 ms for it at once
PASS_OVER_AFTER_BYTES: Final = 65_536  # of one tag: no name is as long, so what goes on must be a value
PIECE_BYTES: Final = 16_384  # given to expat in one call: well under a millisecond
PROLOG_PIECE_BYTES: Final = 1_024  # as long as entities may be declared: what they expand to is not known yet
TOKEN_PIECE_BYTES_MAX: Final = 32_768  # of a tag that is read over and over
ATTRIBUTES_PER_STEP: Final = 4
DECLARED_PER_STEP: Final = 32
PARSER_STEPS: Final = 16  # to make one

_BLANKS: Final = b"\t\n\r "
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_OPENINGS: Final = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")  # a byte order mark, or none (XML 1.0, appendix F)
_DECLARED: Final = re.compile(rb"<\?xml[^>]{1,200}?encoding[\t\n\r ]{0,9}=[\t\n\r ]{0,9}[\"']([\w.-]{1,40})[\"']")
_UTF8: Final = frozenset({b"utf-8", b"utf8"})
_INERT: Final = re.compile(rb"[^\"'<>\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*")  # base64, path data, text: it ends no tag
_REFERENCE: Final = re.compile(rb"&(?!#|amp;|lt;|gt;|quot;|apos;)")  # to an entity that the document declares
_HALF: Final = re.compile(rb"(?:&[#\w]*|[\xc0-\xff][\x80-\xbf]*|-+)\Z")  # what may have a second half
_HALF_BYTES_MAX: Final = 12
_COMMENT: Final = b"<!--"
_LENGTH: Final = re.compile(r"\s*\+?(\d{1,9}(?:\.\d*)?|\.\d+)(e[+-]?\d{1,2})?(px|pt|pc|mm|cm|in|)\s*", re.IGNORECASE)
_PIXELS_MAX: Final = 2**31 - 1
_PIXELS_PER_UNIT: Final = {"": 1.0, "px": 1.0, "pt": 96 / 72, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}


def recognise(head: Body) -> Format | None:
    root = _root(head)
    return Format.SVG if root is not None and root.is_svg else None


def measure(body: Body) -> PixelSize | None:
    root = _root(body)
    if root is None:
        return None
    sides = [_pixels(root.attributes.get(name, "")) for name in ("width", "height")]
    if not all(sides):
        box = root.attributes.get("viewBox", "").replace(",", " ").split()
        sides = [_pixels(side) for side in box[2:]] if len(box) == 4 else [0, 0]
    return pixel_size(*sides)


def is_whole(body: Body) -> bool:
    document = _read(body)
    return document is not None and document.root is not None and document.root.is_svg


def _root(body: Body) -> _Root | None:
    """Return the root element; None if there is none or something else comes first. Raises: Cut."""
    document = _read(body, root_only=True)
    if document is None:
        return None
    if document.root is None:
        raise Cut
    return document.root


def _read(body: Body, *, root_only: bool = False) -> _Document | None:
    """Parse a document to its end, or to its root; return None if it is not valid for us. Raises: Cut."""
    opening = _opening(body.piece(0, HEAD_BYTES_MAX))
    if opening is None:
        return None
    fed, encoding = opening
    document = _Document(encoding, body.budget, root_only=root_only)
    end = min(body.size, HEAD_BYTES_MAX) if root_only else body.size
    token = b""
    while fed < end:
        if document.root is None and fed > HEAD_BYTES_MAX:
            return None
        piece = body.piece(fed, min(document.piece_bytes, end - fed))
        if fed + len(piece) < end:
            piece = _up_to_half(piece)
        pending_bytes = document.pending_bytes
        if pending_bytes < PASS_OVER_AFTER_BYTES:
            token = b""
        elif not token:
            token = body.piece(fed - pending_bytes, len(_COMMENT))
        fed += len(piece)
        # A piece from the middle of a value says nothing about the end: skip a photograph in base64.
        if token and fed < end and _is_inside(token, piece, document):
            continue
        if not document.feed(piece, is_last=fed == end and not root_only):
            return document if root_only and document.root is not None else None
    return document


def _up_to_half(piece: bytes) -> bytes:
    """Return the piece without a reference, a character or the end of a comment that the next one goes on with."""
    half = _HALF.search(piece, max(len(piece) - _HALF_BYTES_MAX, 0))
    return piece if half is None or half.start() == 0 else piece[: half.start()]


def _is_inside(token: bytes, piece: bytes, document: _Document) -> bool:
    """Return whether the token that is open goes on behind the piece."""
    document.budget.spend(len(piece) // BYTES_SCANNED_PER_STEP)
    if token == _COMMENT:
        return b"--" not in piece
    return document.root is not None and _INERT.fullmatch(piece) is not None


def _opening(head: bytes) -> tuple[int, str] | None:
    """Return where the document begins, and its encoding; None if it is no XML. Raises: Cut."""
    if any(_begins(head, opening) for opening in _UTF16_OPENINGS):
        return 0, "UTF-16"
    document = head[len(_UTF8_MARK) if _begins(head, _UTF8_MARK) else 0 :].lstrip(_BLANKS)
    if not _begins(document, b"<"):
        return None
    declared = _DECLARED.match(document)
    is_utf8 = declared is None or declared[1].lower() in _UTF8
    return len(head) - len(document), "UTF-8" if is_utf8 else "ISO-8859-1"


def _begins(head: bytes, magic: bytes) -> bool:
    if len(head) < len(magic) and magic.startswith(head):
        raise Cut
    return head.startswith(magic)


def _pixels(length: str) -> int:
    """Return a length in pixels at 96 to the inch (CSS Values 3, 6.2); 0 if it is relative or none."""
    found = _LENGTH.fullmatch(length)
    if found is None:
        return 0
    pixels = round(float(found[1] + (found[2] or "")) * _PIXELS_PER_UNIT[found[3].lower()])
    return pixels if pixels <= _PIXELS_MAX else 0


@dataclass(frozen=True, slots=True)
class _Root:
    """The root element, by its start tag."""

    is_svg: bool
    attributes: dict[str, str]


@dataclass(slots=True)
class _Reports:
    """The handlers of expat, with their limits. They hold no reference to the parser."""

    budget: Budget
    root_only: bool
    root: _Root | None = None
    entity_chars: int = 0
    """Length of the longest entity."""
    names: dict[str, str] = field(default_factory=dict)
    """All names of elements and attributes, which pyexpat interns here."""
    _prefixes: set[str] = field(default_factory=set)
    _open: int = 0
    _declarations: int = 0

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        # Attributes that the document declares cost expat time at every element, though it does not report them.
        self.budget.spend(1 + len(attributes) // ATTRIBUTES_PER_STEP + self._declarations // DECLARED_PER_STEP)
        if self.root is None:
            namespace, _, local = name.rpartition(" ")
            self.root = _Root(local == "svg" and namespace in {"", NAMESPACE}, attributes)
            if self.root_only:
                raise expat.ExpatError("the root was all that was asked for")
        self._count_open(name)
        if len(self.names) > NAMES_MAX or (attributes and max(map(len, attributes)) > NAME_CHARS_MAX):
            raise expat.ExpatError("too many names, or too long ones")

    def begin_namespace(self, prefix: str | None, uri: str | None) -> None:
        self.budget.spend()
        self._count_open(f"{prefix} {uri}")
        self._prefixes.add(prefix or "")
        if len(self._prefixes) > NAMES_MAX:
            raise expat.ExpatError("too many prefixes")

    def end(self, _name: str | None) -> None:
        self._open -= 1

    def declare_entity(self, _name: str, _is_parameter: bool, value: str | None, *_: str | None) -> None:  # noqa: FBT001 - expat's call
        self._count_declaration(value)
        if value is not None:
            self.entity_chars = max(self.entity_chars, len(value))
            if "&" in value:
                raise expat.ExpatError("an entity refers to another")

    def declare_attribute(self, _element: str, _name: str, _type: str, default: str | None, _required: bool) -> None:  # noqa: FBT001 - expat's call
        self._count_declaration(default)

    def _count_open(self, name: str) -> None:
        self._open += 1
        if self._open > OPEN_MAX or len(name) > NAME_CHARS_MAX:
            raise expat.ExpatError("too deep, or a name too long")

    def _count_declaration(self, value: str | None) -> None:
        self._declarations += 1
        if self._declarations > DECLARATIONS_MAX or len(value or "") > ENTITY_CHARS_MAX:
            raise expat.ExpatError("too many declarations, or too long ones")


class _Document:
    """One pass of expat over a document; `root` is there as soon as its start tag is complete."""

    def __init__(self, encoding: str, budget: Budget, *, root_only: bool = False) -> None:
        budget.spend(PARSER_STEPS)
        self.budget = budget
        self._fed = 0
        self._quotes = 0
        self._reports = reports = _Reports(budget, root_only)
        self._parser = parser = expat.ParserCreate(encoding, " ", reports.names)
        # From 2.6 on expat defers its reports, so as not to parse a long tag again and again. Here the pieces grow with
        # the tag instead, and a late report would hide the root.
        getattr(parser, "SetReparseDeferralEnabled", bool)(False)
        parser.specified_attributes = True
        parser.StartElementHandler = reports.begin
        parser.EndElementHandler = reports.end
        parser.StartNamespaceDeclHandler = reports.begin_namespace
        parser.EndNamespaceDeclHandler = reports.end
        parser.EntityDeclHandler = reports.declare_entity
        parser.AttlistDeclHandler = reports.declare_attribute

    @property
    def root(self) -> _Root | None:
        return self._reports.root

    @property
    def pending_bytes(self) -> int:
        """Return the number of bytes of the last, incomplete token."""
        return self._fed - max(self._parser.CurrentByteIndex, 0)

    @property
    def piece_bytes(self) -> int:
        """
        Return the size of the next piece. Expat parses an incomplete tag again from its start, so its pieces grow.
        """
        least = PROLOG_PIECE_BYTES if self.root is None else PIECE_BYTES
        return max(least, min(self.pending_bytes, TOKEN_PIECE_BYTES_MAX))

    def feed(self, piece: bytes, *, is_last: bool) -> bool:
        """Parse a piece; return whether the document is still well-formed and within the limits. Raises: Spent."""
        pending_bytes = self.pending_bytes
        size = pending_bytes + len(piece)
        # An entity may be declared in the same piece as it is used, before the root alone.
        entity_bytes = max(self._reports.entity_chars, min(size, ENTITY_CHARS_MAX) if self.root is None else 0)
        expansion = len(_REFERENCE.findall(piece)) * entity_bytes if entity_bytes else 0
        if expansion > EXPANSION_BYTES_MAX or pending_bytes > TOKEN_BYTES_MAX or self._quotes > QUOTES_MAX:
            return False
        self.budget.spend(1 + (size + expansion) // BYTES_SCANNED_PER_STEP)
        self._fed += len(piece)
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError:
            return False
        self._count_quotes(piece)
        return True

    def _count_quotes(self, piece: bytes) -> None:
        """Count the quotes in the incomplete tag."""
        pending_bytes = self.pending_bytes
        if pending_bytes <= len(piece):
            self._quotes = 0
            piece = piece[len(piece) - pending_bytes :]
        self._quotes += piece.count(b'"') + piece.count(b"'")
