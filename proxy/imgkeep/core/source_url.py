"""
The source URL of a request: an absolute http(s) URL, and the query of `/img` that carries one.

Rules:
- imgkeep connects to the host that it has checked: `core/url_host.py` converts the host to its ASCII form, once, and no
  module downstream parses the URL again. A second parser may read another host (CVE-2019-9636, CVE-2024-11168).
- The parser drops white space around a link, which comes from pasting. It refuses white space inside, though browsers
  drop tabs and line ends there: two links pasted as one name neither.
- The request to the origin carries path and query as the client gave them: a signature covers them, so escapes, case,
  order, `//` and dot segments stay. (`a/../b` is a key like any other to an object store.) The parser percent-encodes
  only characters that a request line cannot carry, and doing that twice changes nothing.
- A message never contains a part of the URL, except the name of an unknown parameter. Errors are raised `from None`,
  because their causes contain the URL.

The forms of `src` in the query of `/img`: programs percent-encode it, each in its own way (`encodeURIComponent`,
`urlencode`, `http_build_query` encode all but unreserved characters; yarl leaves `:/?@` but not `=&+`), people do not
encode it at all. So a value that begins with `scheme://` and has a literal `=` behind a literal `?` is not encoded: it
reaches to the end of the query, and our own parameters come before it. Every other value is a form value. If that `=`
comes only behind an `&`, it may belong to our own parameter or to the source:

    src=https://h/a.png?w%3D1&sig=x     encoded: `=` of the source is `%3D`
    src=https://h/a.png?thumb&sig=x     encoded: only our own parameters follow
    src=https://h/a.png?thumb&e=1&t=x   not encoded: `e` and `t` can only be the source's
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from imgkeep.core.errors import InvalidSource
from imgkeep.core.records import DEFAULT_PORTS, Source
from imgkeep.core.url_host import read_authority

SOURCE_CHARS_MAX: Final = 8192
"""
Maximum length of a URL, before and after encoding: signed links with session tokens reach 4 kB, and request lines
rarely exceed 8 kB.
"""

QUERY_CHARS_MAX: Final = 4 * SOURCE_CHARS_MAX
"""
Maximum length of the query of `/img`: percent-encoding triples a source at most; the rest is for our own parameters.
"""

OPTION_NAMES: Final = frozenset({"exp", "sig"})
"""Names of our own parameters of `/img`, besides `src`."""

# re.ASCII: without it IGNORECASE lets U+017F stand for `s`.
_URL: Final = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.ASCII | re.IGNORECASE | re.DOTALL)
_EDGES: Final = "\t\n\v\f\r " + "".join(filter(str.isspace, map(chr, range(0x7F, 0x3001)))) + "\u200b\ufeff"
"""White space, and two zero-width characters that come along when people paste from documents."""
_NEVER: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# RFC 3986, 3.3 and 3.4, and brackets: browsers send them as they are, and signers sign what browsers send.
_LEGAL: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?%\[\]]*")
_ILLEGAL: Final = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\[\]]+")
_STRAY_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ENCODED: Final = re.compile(r"%(?:3D|26)", re.IGNORECASE)
_ENCODED_TWICE: Final = re.compile(r"https?(?:%(?:25)*3A|:/?%(?:25)*2F)", re.ASCII | re.IGNORECASE)
_TELLABLE: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,39})=.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ImgQuery:
    """
    The parsed query of `/img`.

    Attributes:
        source: The source that `src` names.
        text: `src` itself, decoded: our signatures cover this text.
        options: Our other parameters, with names from `OPTION_NAMES`, decoded, in their order.
    """

    source: Source
    text: str = field(repr=False)
    options: tuple[tuple[str, str], ...] = field(repr=False)


def read_source(text: str) -> Source:
    """
    Parse an absolute http(s) URL strictly, and drop its fragment.

    Raises:
        InvalidSource: It is malformed, not http(s) or too long.
        SourceForbidden: It has user information, or an IP address in a non-canonical spelling.
    """
    if len(text) > SOURCE_CHARS_MAX:
        raise _too_long()
    text = text.strip(_EDGES)
    if not (text.isascii() and text.isprintable()) and _NEVER.search(text):
        raise InvalidSource("the source URL holds a control character or is not Unicode text")
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidSource("the source URL is not an absolute http:// or https:// URL")
    scheme = match[1].lower()
    host, port = read_authority(match[2])
    source = Source(scheme, host, port or DEFAULT_PORTS[scheme], _wire_target(match[3]))
    if len(source.url) > SOURCE_CHARS_MAX:
        raise _too_long()
    return source


def read_base(text: str) -> Source:
    """
    Parse a URL to which paths are appended, as `server.public_url`.

    Raises:
        InvalidSource, SourceForbidden: As `read_source`; or it has a query or a fragment.
    """
    source = read_source(text)
    if "?" in text or "#" in text:
        raise InvalidSource("the source URL must have neither a query nor a fragment")
    return source


def read_img_query(query: str, endpoint: str = "/img") -> ImgQuery:
    """
    Parse the query of `/img`: the source, percent-encoded or not, and our own parameters.

    Args:
        query: Everything behind the first `?` of the request target, not decoded.
        endpoint: Path of the request, for messages.

    Raises:
        InvalidSource: `src` is missing, empty, repeated, encoded twice or no http(s) URL; or a parameter is unknown or
            repeated.
        SourceForbidden: See `read_source`.
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
        return ImgQuery(read_source(text), text, options)
    options = _read_options(ahead + behind)
    text = _form_decoded(value)
    if not text:
        raise InvalidSource("src is empty")
    if _ENCODED_TWICE.match(text):
        raise InvalidSource("src looks percent-encoded twice; encode it once")
    return ImgQuery(read_source(text), text, options)


def _too_long() -> InvalidSource:
    return InvalidSource(f"the source URL is longer than {SOURCE_CHARS_MAX} characters")


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


def _form_decoded(value: str) -> str:
    """Decode one value of application/x-www-form-urlencoded as strict UTF-8."""
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
            # A name without a value may be a token of the source, so the message does not quote it.
            tellable = _TELLABLE.fullmatch(text)
            which = tellable[1] if tellable else "one of the parameters"
            raise InvalidSource(f"{which} is not a parameter of ours; percent-encode src if it belongs to it")
        options[name] = _form_decoded(value)
    return tuple(options.items())


def own_path(source: Source, public: Source) -> str | None:
    """Return the path below our public URL that a source names, with a leading `/`; `None`: it is another URL."""
    base = public.target.rstrip("/")
    same_port = source.port == public.port or all(each.port == DEFAULT_PORTS[each.scheme] for each in (source, public))
    if source.host != public.host or not same_port or not source.target.startswith(f"{base}/"):
        return None
    return source.target.removeprefix(base)
