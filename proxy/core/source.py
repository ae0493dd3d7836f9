"""
Reads what a client calls a source: an absolute http(s) URL, and the query of `/img` that carries one.

Rules:
- What was checked is what is connected to: the host is brought into its one ASCII form here, once, and nobody
  downstream parses the URL again. Parsers that guess are how guards are bypassed (CVE-2019-9636, CVE-2024-11168).
- What goes on the wire is what was given: path and query are credentials over which somebody computed a signature,
  so escapes, case, order, `//` and dot segments stay. (`a/../b` is a key like any other to an object store.)
  Only what may not stand in a request line at all is percent-encoded, and doing that twice changes nothing.
- A message never holds a part of the URL, save the name of a parameter that is not ours. Errors are raised
  `from None`: their causes would carry the URL.

How `src` is written in the query of `/img`. Programs percent-encode it, each in its own way (`encodeURIComponent`,
`urlencode`, `http_build_query` encode all but unreserved characters; yarl leaves `:/?@` but not `=&+`), people do not
encode it at all. So a value that begins with `scheme://` and has a literal `=` behind a literal `?` was not encoded: it
stands as it is and reaches to the end, our own parameters come before it. Everything else is a form value. Where
that `=` is found only behind an `&`, it may be our own parameter's or the source's:

    src=https://h/a.png?w%3D1&sig=x     encoded: `=` of the source is `%3D`
    src=https://h/a.png?thumb&sig=x     encoded: nothing but our own parameters follows
    src=https://h/a.png?thumb&e=1&t=x   as it stands: `e` and `t` can only be the source's
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import idna

from proxy.core.errors import InvalidSource, SourceForbidden
from proxy.core.model import DEFAULT_PORTS, Source

SOURCE_CHARS_MAX: Final = 8192
"""Of a URL, before and after encoding: signed links with session tokens reach 4 kB, request lines rarely pass 8 kB."""

QUERY_CHARS_MAX: Final = 4 * SOURCE_CHARS_MAX
"""Of the query of `/img`: percent-encoding triples a source at most; the rest is for our own parameters."""

NAME_CHARS_MAX: Final = 253
"""Of a DNS name, dots included (RFC 1035, 2.3.4: 255 octets on the wire)."""

OPTION_NAMES: Final = frozenset({"exp", "sig"})
"""Our own parameters of `/img`, besides `src`."""

# re.ASCII: without it IGNORECASE lets U+017F stand for `s`.
_URL: Final = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.ASCII | re.IGNORECASE | re.DOTALL)
_NEVER: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_AUTHORITY: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.*))?", re.DOTALL)
_PORT: Final = re.compile(r"[0-9]{1,5}")
# Names of hosts are wider than RFC 1123 allows: underscores and outer hyphens are in use (buckets, user pages).
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

# RFC 3986, 3.3 and 3.4, and brackets: browsers send them as they are, and signers sign what browsers send.
_LEGAL: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?%\[\]]*")
_ILLEGAL: Final = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\[\]]+")
_STRAY_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ENCODED: Final = re.compile(r"%(?:3D|26)", re.IGNORECASE)
_ENCODED_TWICE: Final = re.compile(r"https?(?:%(?:25)*3A|:/?%(?:25)*2F)", re.ASCII | re.IGNORECASE)
_RAW_AUTHORITY: Final = re.compile(r"(?<=://)[^/?#]*")
_HIGH_ESCAPES: Final = re.compile(r"(?:%[89A-Fa-f][0-9A-Fa-f])+")
_TELLABLE: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,39})=.*", re.DOTALL)

# Its tables are read by its first use (20 ms), which must not be a request's.
idna.encode("ü", uts46=True, std3_rules=True)


@dataclass(frozen=True, slots=True)
class ImgQuery:
    """
    The query of `/img`, read.

    Attributes:
        source: what `src` names.
        text: `src` itself, decoded: what our signatures cover.
        options: our own parameters that came with it, names out of `OPTION_NAMES`, decoded, in the order given.
    """

    source: Source
    text: str = field(repr=False)
    options: tuple[tuple[str, str], ...] = field(repr=False)


def read_source(text: str) -> Source:
    """
    Read an absolute http(s) URL strictly. The fragment is dropped.

    Raises:
        InvalidSource: it is malformed, not http(s) or too long.
        SourceForbidden: it carries user information, or an address in a spelling that is not the canonical one.
    """
    if len(text) > SOURCE_CHARS_MAX:
        raise _too_long()
    if not (text.isascii() and text.isprintable()) and _NEVER.search(text):
        raise InvalidSource("the source URL holds a control character or is not Unicode text")
    if text != text.strip():
        raise InvalidSource("the source URL begins or ends with white space")
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidSource("the source URL is not an absolute http:// or https:// URL")
    scheme = match[1].lower()
    host, port = _read_authority(match[2])
    source = Source(scheme, host, port or DEFAULT_PORTS[scheme], _wire_target(match[3]))
    if len(source.url) > SOURCE_CHARS_MAX:
        raise _too_long()
    return source


def read_base(text: str) -> Source:
    """
    Read a URL that paths are put behind, as `server.public_url`.

    Raises:
        InvalidSource, SourceForbidden: as `read_source`; or it has a query or a fragment, which paths would end up in.
    """
    source = read_source(text)
    if "?" in text or "#" in text:
        raise InvalidSource("the source URL must have neither a query nor a fragment")
    return source


def read_img_query(query: str, endpoint: str = "/img") -> ImgQuery:
    """
    Read the query of `/img`: the source as it stands or percent-encoded, and our own parameters.

    Args:
        query: everything behind the first `?` of the request target as it came over the wire, nothing decoded.
        endpoint: the path that was asked, for messages.

    Raises:
        InvalidSource: `src` is missing, empty, given twice, encoded twice or no http(s) URL; or a parameter is not
            ours, or given twice.
        SourceForbidden: see `read_source`.
    """
    if len(query) > QUERY_CHARS_MAX:
        raise _too_long()
    fields = query.split("&")
    at = next((i for i, text in enumerate(fields) if _name(text) == "src"), None)
    if at is None:
        raise InvalidSource(f"src is missing: ask for {endpoint}?src=<percent-encoded URL>")
    value, ahead, behind = fields[at][len("src=") :], fields[:at], fields[at + 1 :]
    if _stands_as_it_is(value, behind):
        options = _read_options(ahead)
        text = "&".join([value, *behind])
        return ImgQuery(read_source(_with_readable_host(text)), text, options)
    options = _read_options(ahead + behind)
    text = _form_decoded(value)
    if not text:
        raise InvalidSource("src is empty")
    if _ENCODED_TWICE.match(text):
        raise InvalidSource("src looks percent-encoded twice; encode it once")
    return ImgQuery(read_source(text), text, options)


def _too_long() -> InvalidSource:
    return InvalidSource(f"the source URL is longer than {SOURCE_CHARS_MAX} characters")


# A page full of pictures names few hosts; what fails is not kept, so nobody fills this with nonsense.
@lru_cache(maxsize=1024)
def _read_authority(authority: str) -> tuple[str, int | None]:
    if "@" in authority:
        raise SourceForbidden("the source URL carries user information")
    if "%" in authority:
        raise InvalidSource("the host of the source URL is percent-encoded or carries a zone")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not match[1]:
        raise InvalidSource("the host of the source URL is missing or malformed")
    return _read_host(match[1]), _read_port(match[2]) if match[2] else None


def _read_port(text: str) -> int:
    if _PORT.fullmatch(text) is None or not 0 < int(text) < 65536:
        raise InvalidSource("the port of the source URL is not a number from 1 to 65535")
    return int(text)


def _read_host(text: str) -> str:
    if text.startswith("["):
        return _read_ipv6(text[1:-1])
    name = text.lower() if text.isascii() else _idna_name(text)
    name = name.removesuffix(".")
    if len(name) > NAME_CHARS_MAX or _NAME.fullmatch(name) is None:
        raise InvalidSource("the host of the source URL is not a valid name")
    # https://url.spec.whatwg.org/#ends-in-a-number-checker; resolvers take 127.1, 0x7f000001 and 2130706433, too.
    if _ENDS_IN_NUMBER.fullmatch(name) and not (text.isascii() and _is_canonical_ipv4(name)):
        raise SourceForbidden("the host of the source URL is a non-canonical spelling of an address")
    return name


def _idna_name(text: str) -> str:
    try:
        if len(text) > NAME_CHARS_MAX + 1:
            raise InvalidSource("the host of the source URL is too long")
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except UnicodeError:
        raise InvalidSource("the host of the source URL is not a valid international name (RFC 5891)") from None


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
    # RFC 5952, 5; Python writes it so from 3.13 on only.
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


def _wire_target(target: str) -> str:
    if not target.startswith("/"):
        target = f"/{target}"
    if _LEGAL.fullmatch(target) is None:
        target = _ILLEGAL.sub(lambda illegal: quote(illegal[0], safe=""), target)
    return _STRAY_PERCENT.sub("%25", target) if "%" in target else target


def _name(text: str) -> str:
    return text.partition("=")[0]


def _stands_as_it_is(value: str, behind: list[str]) -> bool:
    if _SCHEME.match(value) is None:
        return False
    if "=" in value.partition("?")[2]:
        return True
    if "=" not in "&".join([value, *behind]).partition("?")[2]:
        return False
    return not _ENCODED.search(value) and not all(_name(text) in {"", "src", *OPTION_NAMES} for text in behind)


def _with_readable_host(text: str) -> str:
    """
    Undo what a browser's address bar does to an international host that stands in a query unencoded.

    Nothing but UTF-8 beyond ASCII is decoded, so no delimiter and no digit comes to light that was hidden.
    """

    def decoded(authority: re.Match[str]) -> str:
        return _HIGH_ESCAPES.sub(lambda escapes: _form_decoded(escapes[0]), authority[0])

    return _RAW_AUTHORITY.sub(decoded, text, count=1)


def _form_decoded(value: str) -> str:
    """Decode one value of application/x-www-form-urlencoded, strictly in UTF-8."""
    try:
        return unquote_to_bytes(value.replace("+", " ")).decode("utf-8")
    except UnicodeError:
        raise InvalidSource("a parameter is not UTF-8") from None


def _read_options(fields: list[str]) -> tuple[tuple[str, str], ...]:
    options: dict[str, str] = {}
    for text in filter(None, fields):
        name, _, value = text.partition("=")
        if name == "src" or name in options:
            raise InvalidSource(f"{name} is given twice; percent-encode src if one belongs to it")
        if name not in OPTION_NAMES:
            # A name without a value may be a token of the source, so it is not told.
            tellable = _TELLABLE.fullmatch(text)
            which = tellable[1] if tellable else "one of the parameters"
            raise InvalidSource(f"{which} is not a parameter of ours; percent-encode src if it belongs to it")
        options[name] = _form_decoded(value)
    return tuple(options.items())


def own_path(source: Source, public: Source) -> str | None:
    """Return the path under our public URL that a source names, `/` first; `None` if it names something else."""
    base = public.target.rstrip("/")
    same_port = source.port == public.port or all(each.port == DEFAULT_PORTS[each.scheme] for each in (source, public))
    if source.host != public.host or not same_port or not source.target.startswith(f"{base}/"):
        return None
    return source.target.removeprefix(base)
