"""
The authority of a URL, parsed as in browsers: one host, one spelling (https://url.spec.whatwg.org/#host-parsing).

Rules:
- imgkeep connects to the host that it has checked: this module converts the host to ASCII before any other reads it.
- International names: UTS #46, non-transitional, hyphens anywhere, no rules of STD 3. So emoji are names (IDNA 2008
  refuses them), sharp s stays, full stops of other scripts separate labels, soft hyphens vanish. An ASCII name passes
  unchecked, as in Chromium: the resolver decides about `xn--`.
- The parser decodes escapes in a name first, and then refuses any text that is no DNS name.
- An IP address has one spelling. The parser refuses every other text that browsers read as an address (`127.1`,
  `0x7f000001`, digits in circles, escapes): links to images do not use them, attackers do.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import unquote_to_bytes

from idna import check_bidi, uts46_remap, valid_contextj

from imgkeep.core.errors import InvalidSource, SourceForbidden

NAME_CHARS_MAX: Final = 253
"""Maximum length of a DNS name, dots included (RFC 1035, 2.3.4: 255 octets on the wire)."""

LABEL_CHARS_MAX: Final = 63
"""Maximum length of a label (RFC 1035, 2.3.4). Punycode takes quadratic time."""

_AUTHORITY: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.*))?", re.DOTALL)
_PORT: Final = re.compile(r"0*([0-9]{1,5})")
# Wider than the host names of RFC 1123: underscores and outer hyphens are in use (buckets, user pages).
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_BIDI: Final = frozenset({"R", "AL", "AN"})

# The first call reads the tables of idna (20 ms), and must not happen in a request.
uts46_remap("ü", std3_rules=False)


# A page full of images names few hosts. The cache does not store failures, so invalid names cannot fill it.
@lru_cache(maxsize=1024)
def read_authority(authority: str) -> tuple[str, int | None]:
    """
    Return host and port of an authority; the host as in `Source.host`.

    Raises:
        InvalidSource: It is malformed, or names no host.
        SourceForbidden: It has user information, or an IP address in a non-canonical spelling.
    """
    if "@" in authority:
        raise SourceForbidden("the source URL carries user information")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not match[1]:
        raise InvalidSource("the host of the source URL is missing or malformed")
    return _read_host(match[1]), _read_port(match[2]) if match[2] else None


def ascii_name(text: str) -> str:
    """
    Return a name, or a label of one, in ASCII and lower case (https://url.spec.whatwg.org/#concept-domain-to-ascii).

    Raises:
        ValueError: It is no valid international name, or too long.
    """
    if text.isascii():
        return text.lower()
    if len(text) > NAME_CHARS_MAX + 1:
        raise ValueError("too long")
    labels = uts46_remap(text, std3_rules=False).split(".")
    unicode_labels = [_decoded(label) for label in labels]
    is_bidi = any(unicodedata.bidirectional(char) in _BIDI for label in unicode_labels for char in label)
    for label in filter(None, unicode_labels):
        _check_label(label, is_bidi=is_bidi)
    return ".".join(map(_encoded, unicode_labels))


def _decoded(label: str) -> str:
    """Return a label without its punycode."""
    if len(label) > LABEL_CHARS_MAX:
        raise ValueError("too long")
    if not label.startswith("xn--"):
        return label
    plain = label[4:].encode("ascii").decode("punycode")
    # UTS #46, 4: the decoded label must be valid and in its normal form.
    if plain.isascii() or uts46_remap(plain, std3_rules=False) != plain or "." in plain:
        raise ValueError("not the punycode of a label")
    return plain


def _encoded(label: str) -> str:
    return label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"


def _check_label(label: str, *, is_bidi: bool) -> None:
    """Refuse a label of valid characters that breaks the rules of UTS #46, 4.1."""
    if unicodedata.category(label[0])[0] == "M":
        raise ValueError("begins with a mark")
    if any(char in "\u200c\u200d" and not valid_contextj(label, at) for at, char in enumerate(label)):
        raise ValueError("joins what does not join")
    if is_bidi:
        check_bidi(label, check_ltr=True)


def _read_port(text: str) -> int:
    match = _PORT.fullmatch(text)
    if match is None or not 0 < int(match[1]) < 65536:
        raise InvalidSource("the port of the source URL is not a number from 1 to 65535")
    return int(match[1])


def _read_host(text: str) -> str:
    if text.startswith("["):
        return _read_ipv6(text[1:-1])
    try:
        name = ascii_name(_unescaped(text)).removesuffix(".")
    except (UnicodeError, ValueError):
        raise InvalidSource("the host of the source URL is not a valid international name (UTS 46)") from None
    if len(name) > NAME_CHARS_MAX or _NAME.fullmatch(name) is None:
        raise InvalidSource("the host of the source URL is not a valid name")
    # https://url.spec.whatwg.org/#ends-in-a-number-checker; resolvers take 127.1, 0x7f000001 and 2130706433, too.
    if _ENDS_IN_NUMBER.fullmatch(name) and not (text.removesuffix(".") == name and _is_canonical_ipv4(name)):
        raise SourceForbidden("the host of the source URL is a non-canonical spelling of an address")
    return name


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8") if "%" in text else text


def _is_canonical_ipv4(name: str) -> bool:
    try:
        return str(IPv4Address(name)) == name
    except ValueError:
        return False


def _read_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise InvalidSource("the host of the source URL is not a valid IPv6 address") from None
    if address.scope_id is not None:
        raise InvalidSource("the host of the source URL carries a zone, which is this machine's to know")
    # RFC 5952, 5; Python writes it so from 3.13 on only.
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)
