"""
Which characters the bytes of a page mean (https://html.spec.whatwg.org/multipage/parsing.html#encoding-sniffing-algorithm).

Theory. All encodings of the web but UTF-16 and ISO-2022-JP leave `<`, `>`, quotes, `=` and white space as they are in
ASCII, also within characters of several bytes. So pages are read as Latin-1, where each byte is a character and comes
out again as it was, and only values that matter are decoded. UTF-16 is decoded as a whole; ISO-2022-JP is left alone.

A byte order mark counts most, then what the caller says, then a `<meta>` in the first 1024 bytes. Where nothing is
said, a value that is UTF-8 is taken for it, and any other beyond ASCII is left alone, because browsers guess by the
country of who looks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from proxy.core.rewrite import tags

HEAD_BYTES: Final = 1024
"""In which a page has to say its encoding."""

BOM_BYTES: Final = 3

_BOMS: Final = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}

# https://encoding.spec.whatwg.org/#names-and-labels, by the codecs that read them as a browser does; names that say
# less than is meant come first.
_CODECS: Final = {
    codec: frozenset(labels.split())
    for codec, labels in {
        "utf-8": "utf-8 utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8",
        "utf-16-le": "utf-16 utf-16le ucs-2 unicode iso-10646-ucs-2 csunicode unicodefeff",
        "utf-16-be": "utf-16be unicodefffe",
        "cp1252": "iso-8859-1 iso8859-1 iso88591 iso_8859-1 latin1 l1 ascii us-ascii cp819 ibm819 windows-1252 cp1252 "
        "x-cp1252 ansi_x3.4-1968 csisolatin1 iso-ir-100 x-user-defined",
        "cp1254": "iso-8859-9 iso8859-9 iso88599 iso_8859-9 latin5 l5 windows-1254 cp1254 x-cp1254 csisolatin5",
        "cp874": "iso-8859-11 iso8859-11 iso885911 tis-620 windows-874 dos-874",
        "gb18030": "gb18030 gbk x-gbk gb2312 gb_2312 gb_2312-80 chinese csgb2312 csiso58gb231280 iso-ir-58",
        "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
        "cp932": "shift_jis shift-jis sjis x-sjis ms_kanji ms932 windows-31j csshiftjis",
        "euc_jp": "euc-jp x-euc-jp cseucpkdfmtjapanese",
        "cp949": "euc-kr ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 korean windows-949 cseuckr csksc56011987",
        "koi8_r": "koi8-r koi8_r koi8 koi cskoi8r",
        "koi8_u": "koi8-u koi8-ru",
        "mac_roman": "macintosh mac x-mac-roman csmacintosh",
        "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
        "cp866": "ibm866 cp866 866 csibm866",
    }.items()
}
_NUMBERED: Final = (
    (re.compile(r"(?:windows-|x-cp|cp)(125[0-8])"), "cp"),
    (re.compile(r"iso[-_]?8859[-_]?([2-8]|1[03-6])(?:-[ei])?"), "iso8859_"),
)
_LATIN: Final = {
    f"{name}{n}": f"iso8859_{part}" for n, part in ((2, 2), (3, 3), (4, 4), (6, 10)) for name in ("latin", "l")
}
OPAQUE: Final = "opaque"
"""Stands for encodings in which a `<` need not be one."""

_OPAQUE: Final = frozenset({
    "iso-2022-jp", "csiso2022jp", "iso-2022-kr", "csiso2022kr", "iso-2022-cn", "iso-2022-cn-ext", "hz-gb-2312",
    "replacement", "utf-7",
})  # fmt: skip

_CONTENT: Final = re.compile(r"charset[\t\n\f\r ]*=[\t\n\f\r ]*[\"']?([^\t\n\f\r \"';]+)", re.ASCII | re.IGNORECASE)


def codec_of(label: str) -> str | None:
    """Return the codec that a name of an encoding means; `None` for one that browsers do not know."""
    label = label.strip("\t\n\f\r ").lower()
    if label in _OPAQUE:
        return OPAQUE
    for pattern, prefix in _NUMBERED:
        if match := pattern.fullmatch(label):
            return prefix + match[1]
    return next((codec for codec, labels in _CODECS.items() if label in labels), _LATIN.get(label))


def find_codec(head: bytes, told: str | None) -> str | None:
    """
    Return the codec of a page; `None` if nothing tells it.

    Args:
        head: The first `HEAD_BYTES`, or all there are; where `told` names an encoding, `BOM_BYTES` will do.
        told: The `charset` of the page's media type.
    """
    for mark, codec in _BOMS.items():
        if head.startswith(mark):
            return codec
    return (codec_of(told) if told else None) or _from_meta(head[:HEAD_BYTES].decode("latin-1"))


def _from_meta(head: str) -> str | None:
    at = 0
    while (at := head.find("<", at)) >= 0:
        if head.startswith("<!--", at):
            end = head.find("-->", at + len("<!"))
            at = len(head) if end < 0 else end
            continue
        tag = tags.read_tag(head, at)
        if tag is not None and tag.name == "meta" and not tag.is_end and (codec := _told_by(head, tag)):
            # The page could not say so if it were in UTF-16.
            return "utf-8" if codec.startswith("utf-16") else codec
        at = at + 1 if tag is None else tag.end
    return None


def _told_by(head: str, tag: tags.Tag) -> str | None:
    attributes = {name: head[start:end] for name, (start, end, _) in tags.read_attributes(head, tag).items()}
    label = attributes.get("charset")
    if label is None and attributes.get("http-equiv", "").lower() == "content-type":
        match = _CONTENT.search(attributes.get("content", ""))
        label = match[1] if match else None
    return codec_of(label) if label else None


@dataclass(frozen=True, slots=True)
class Text:
    """The characters are those of the page."""

    def decode(self, source: str) -> str:
        """See `values.Charset`."""
        return source

    def encode(self, text: str) -> str:
        """See `values.Charset`."""
        return text


@dataclass(frozen=True, slots=True)
class Bytes:
    """
    The characters are bytes, read as Latin-1, and mean text in an encoding.

    Attributes:
        codec: `None`: nobody has said, see above.
    """

    codec: str | None

    def decode(self, source: str) -> str | None:
        """See `values.Charset`."""
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
        """See `values.Charset`."""
        return text.encode(self.codec or "utf-8", "surrogateescape").decode("latin-1")
