"""
URLs of willnorris/imageproxy: `/{options}/{source}`, with options in any order and commas between them.

    300x200      both sides are covered, what juts out is cut off; `300` is `300x300`, `300x` the width alone
    fit          the picture fits into the sides
    sc           the salient part stays, in place of the middle
    r90          turned counter-clockwise
    q80          quality
    jpeg, png    format
    scaleUp      a picture that is smaller is enlarged
    s...         signature
    vu...        end of the URL, in epoch seconds

The source is not encoded, percent-encoded, or base64url without padding. A later option takes the place of an earlier
one of its kind. The signature is the HMAC-SHA-256 of the source, or of `source#options` with the options sorted and the
size as `WxH`, in base64url (its docs/url-signing.md).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest, digest
from typing import Final

from imgkeep.core.derived.compatibility.foreign_request import (
    OPTIONS_CHARS_MAX,
    ForeignPicture,
    ForeignRequest,
    check_length,
    percent_decoded,
    quoted,
    read_absolute_url,
    read_number,
    read_turn,
    refuse_query,
)
from imgkeep.core.errors import InvalidOption, NotSupported, SignatureInvalid
from imgkeep.core.signing import ForeignSignature

_ENCODED: Final = re.compile(r"https?%3A%2F", re.ASCII | re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9_-]+")
_SIZE: Final = re.compile(r"([0-9]{0,8})(x?)([0-9]{0,8})")
_FRACTION: Final = re.compile(r"(?=.*\.)[0-9.]*(?:x[0-9.]*)?")
_FLAGS: Final = frozenset({"fit", "sc", "scaleUp"})
_FORMATS: Final = frozenset({"jpeg", "png"})
_UNSUPPORTED: Final = {
    "fv": "flips are not supported",
    "fh": "flips are not supported",
    "tiff": "pictures in TIFF are not supported; ask for jpeg or png",
    "trim": "trimming of edges is not supported",
}
_CROPS: Final = ("cx", "cy", "cw", "ch")


@dataclass(slots=True)
class _Options:
    width: int = 0
    height: int = 0
    flags: set[str] = field(default_factory=set)
    rotate: str = ""
    quality: int = 0
    format: str = ""
    signature: str = ""
    ends: int = 0

    def canonical(self) -> str:
        """Return the text that a signature covers."""
        parts = [
            f"{self.width}x{self.height}",
            *self.flags,
            f"r{int(self.rotate)}" if self.rotate and int(self.rotate) else "",
            f"q{self.quality}" if self.quality else "",
            self.format,
            f"vu{self.ends}" if self.ends else "",
        ]
        return ",".join(sorted(filter(None, parts)))


def read_imageproxy(path: str, query: str | None, key: str) -> ForeignRequest | None:
    """
    Read a URL of imageproxy.

    Args:
        path: The path behind the mount, without a slash at its beginning, not decoded.
        query: `None`: the URL has none.
        key: Its signature key; empty: none.

    Returns:
        `None`: it has another form.

    Raises:
        InvalidOption, NotSupported, InvalidSource, SignatureInvalid: The URL is refused.
    """
    check_length(path, query)
    found, text = _read_source(path), ""
    if found is None:
        text, _, rest = path.partition("/")
        found = _read_source(rest)
    if found is None:
        return None
    source, is_encoded = found
    if is_encoded:
        refuse_query(query)
    elif query is not None:
        source = f"{source}?{query}"
    options = _read_options(percent_decoded(text))
    signature = _judge(options, source, key) if options.signature else None
    return ForeignRequest(source, _translate(options).parameters(), signature, options.ends or None)


def _read_source(text: str) -> tuple[str, bool] | None:
    """Return the source, and whether it was encoded; `None`: this is no source."""
    url = read_absolute_url(text)
    if url is not None:
        return url, False
    decoded = percent_decoded(text) if _ENCODED.match(text) else _base64_decoded(text)
    url = read_absolute_url(decoded)
    return None if url is None else (url, True)


def _base64_decoded(text: str) -> str:
    """Return what base64url encodes; nothing if this does not."""
    if _BASE64.fullmatch(text) is None:
        return ""
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-8")
    except (Base64Error, UnicodeError):
        return ""


def _read_options(text: str) -> _Options:
    if len(text) > OPTIONS_CHARS_MAX:
        raise InvalidOption(f"the options are longer than {OPTIONS_CHARS_MAX} characters")
    options = _Options()
    for option in filter(None, text.split(",")):
        if option in _UNSUPPORTED:
            raise NotSupported(f"{option}: {_UNSUPPORTED[option]}")
        if option.startswith(_CROPS):
            raise NotSupported(f"{option[:2]}: crops of a rectangle are not supported")
        if option in _FLAGS:
            options.flags.add(option)
        elif option in _FORMATS:
            options.format = option
        else:
            _read_value(options, option)
    return options


def _read_value(options: _Options, option: str) -> None:
    kind, value = option[0], option[1:]
    if kind == "r":
        read_turn("r", value)
        options.rotate = value
    elif kind == "q":
        options.quality = read_number("q", value)
    elif kind == "s":
        options.signature = value
    elif option.startswith("vu"):
        options.ends = read_number("vu", option[2:])
    else:
        options.width, options.height = _read_size(option)


def _read_size(text: str) -> tuple[int, int]:
    size = _SIZE.fullmatch(text)
    if size is not None:
        width = int(size[1] or 0)
        return width, int(size[3] or 0) if size[2] else width
    if _FRACTION.fullmatch(text):
        raise NotSupported("a size as a part of the original is not supported; give it in pixels")
    raise InvalidOption(f"{quoted(text)} is not an option of imageproxy")


def _translate(options: _Options) -> ForeignPicture:
    picture = ForeignPicture(options.width, options.height, turned=read_turn("r", options.rotate or "0"))
    both = bool(options.width and options.height)
    if "sc" in options.flags:
        if not both:
            raise InvalidOption("sc: needs a width and a height")
        picture.fit, picture.gravity = "cover", "attention"
    elif both and "fit" not in options.flags:
        picture.fit = "cover"
    elif both and "scaleUp" in options.flags:
        raise NotSupported("scaleUp: is not supported beside fit")
    elif "scaleUp" in options.flags and (options.width or options.height):
        picture.fit = "contain"
    if options.format:
        picture.others["format"] = options.format
    if options.quality:
        picture.others["q"] = str(options.quality)
    return picture


def _judge(options: _Options, source: str, key: str) -> ForeignSignature:
    if not key:
        raise SignatureInvalid("the signature cannot be checked: set derive.imageproxy_key to the key of imageproxy")
    # Bytes of a length of its own when it is malformed, so it fits none.
    given = options.signature.encode("utf-8", "surrogateescape").rstrip(b"=")
    try:
        mac = urlsafe_b64decode(given + b"=" * (-len(given) % 4))
    except Base64Error:
        mac = b""
    secret, signed = key.encode(), source.encode("utf-8", "surrogateescape")
    of_options = compare_digest(mac, digest(secret, signed + f"#{options.canonical()}".encode(), sha256))
    of_source = compare_digest(mac, digest(secret, signed, sha256))
    if not (of_options or of_source):
        raise SignatureInvalid("the signature does not fit this URL")
    return ForeignSignature(covers_options=of_options, ends=options.ends or None)
