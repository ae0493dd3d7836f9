"""
The encoding of a page
(https://html.spec.whatwg.org/multipage/parsing.html#encoding-sniffing-algorithm).

Theory. All encodings of the web but UTF-16 and ISO-2022-JP leave `<`, `>`, quotes, `=` and white space as they are in
ASCII, also within characters of several bytes. So the rewriter reads pages as Latin-1, which maps each byte to a
character and back, and decodes only the values that matter. It decodes UTF-16 as a whole, and passes ISO-2022-JP
unchanged.

A byte order mark counts most, then the caller's `charset`, then a `<meta>` in the first 1024 bytes. Without any, a
value that is valid UTF-8 counts as UTF-8, and any other value beyond ASCII stays, because browsers guess by the user's
locale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from imgkeep.core.rewrite import tags

HEAD_BYTES: Final = 1024
"""Maximum number of first bytes in which a page may declare its encoding."""

BOM_BYTES: Final = 3

_BOMS: Final = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}

# https://encoding.spec.whatwg.org/#names-and-labels, by the codecs that read them as a browser does.
_LABELS: Final = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859_2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859_3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859_4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859_5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859_6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e "
    "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859_7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
    "iso_8859-7:1987 sun_eu_greek",
    "iso8859_8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 "
    "iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859_10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859_13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859_14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859_15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859_16": "iso-8859-16",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8_u": "koi8-ru koi8-u",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 "
    "iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 "
    "windows-949",
    "opaque": "csiso2022jp iso-2022-jp csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement",
    "x-user-defined": "x-user-defined",
}
_CODECS: Final = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}

OPAQUE: Final = frozenset({"opaque", "x-user-defined"})
"""Codecs of encodings in which a byte `<` may be no `<`, or whose characters are no text."""

# What a page says of itself and browsers read as another (#prescan-a-byte-stream-to-determine-its-encoding).
_IN_META: Final = {"utf-16-be": "utf-8", "utf-16-le": "utf-8", "x-user-defined": "cp1252"}

# #extracting-character-encodings-from-meta-elements; a quote that is not closed tells nothing, and ends the search.
_CONTENT: Final = re.compile(
    r"charset[\t\n\f\r ]*=[\t\n\f\r ]*(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r \"';][^\t\n\f\r ;]*)|)",
    re.ASCII | re.IGNORECASE,
)


_BEGUN: Final = re.compile(r"<(?:/?(?:[A-Za-z]|\Z)|!-?\Z)")
"""The start of a tag or comment without its end."""


def codec_of(label: str) -> str | None:
    """Return the codec of a label, or one of `OPAQUE`; `None` for an unknown label."""
    return _CODECS.get(tags.lowered(label.strip("\t\n\f\r ")))


def find_codec(head: bytes, told: str | None) -> str | None:
    """
    Return the codec of a page; `None` if it has no declaration.

    Args:
        head: The first `HEAD_BYTES`, or the whole page; if `told` names an encoding, `BOM_BYTES` suffice.
        told: The `charset` of the page's media type.
    """
    for mark, codec in _BOMS.items():
        if head.startswith(mark):
            return codec
    return (codec_of(told) if told else None) or _from_meta(head[:HEAD_BYTES].decode("latin-1"))


def tells_codec(head: bytes) -> bool:
    """Return whether the beginning of a page declares its encoding, whatever follows."""
    return head.startswith(tuple(_BOMS)) or _from_meta(head.decode("latin-1"), is_cut=True) is not None


def _from_meta(head: str, *, is_cut: bool = False) -> str | None:
    at = 0
    while (at := head.find("<", at)) >= 0:
        if head.startswith("<!--", at):
            end = head.find("-->", at + len("<!"))
            at = len(head) if end < 0 else end
            continue
        tag = tags.read_tag(head, at)
        if tag is not None and tag.name == "meta" and not tag.is_end and (codec := _told_by(head, tag)):
            return _IN_META.get(codec, codec)
        if tag is None and is_cut and _BEGUN.match(head, at):
            return None
        at = at + 1 if tag is None else tag.end
    return None


def _told_by(head: str, tag: tags.Tag) -> str | None:
    attributes = {name: head[start:end] for name, (start, end, _) in tags.read_attributes(head, tag).items()}
    label = attributes.get("charset")
    if label is None and attributes.get("http-equiv", "").lower() == "content-type":
        match = _CONTENT.search(attributes.get("content", ""))
        label = "".join(match.groups("")) if match else None
    return codec_of(label) if label else None


@dataclass(frozen=True, slots=True)
class Text:
    """The charset of text: its characters are those of the page."""

    def decode(self, source: str) -> str:
        """Return what `source` means."""
        return source

    def encode(self, text: str) -> str:
        """Return what means `text`: the inverse."""
        return text


@dataclass(frozen=True, slots=True)
class Bytes:
    """
    The charset of bytes: each character is a byte, read as Latin-1.

    Attributes:
        codec: Codec of the bytes; `None`: neither the page nor the caller names one, see above.
    """

    codec: str | None

    def decode(self, source: str) -> str | None:
        """Return the text of `source`; `None` if the encoding is uncertain."""
        if source.isascii():
            return source
        data = source.encode("latin-1")
        try:
            if self.codec is None:
                return data.decode("utf-8")
            text = data.decode(self.codec, "surrogateescape")
            return text if text.encode(self.codec, "surrogateescape") == data else None
        except UnicodeError:
            return None

    def encode(self, text: str) -> str:
        """Return what means `text`: the inverse."""
        return text.encode(self.codec or "utf-8", "surrogateescape").decode("latin-1")


Charset: TypeAlias = Text | Bytes
"""The relation between the characters that the parser reads and those of the page."""
