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

The names of our picture options (`w`, `q`, `format` ...) are common in source URLs, so beside a source that may be
unencoded they are the source's; before `src`, and behind an encoded one, they are ours:

    src=https://h/a.png?thumb&w=400     not encoded: `w` is the source's
    w=400&src=https://h/a.png?thumb     `w` is ours
    src=https%3A%2F%2Fh%2Fa.png&w=400   encoded: `w` is ours
    src=https://h/a.png&w=400           `w` is ours: no `?` begins a query that it could belong to
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from imgkeep.core.derived.options import OPTION_NAMES
from imgkeep.core.errors import InvalidOption, InvalidSource
from imgkeep.core.records import DEFAULT_PORTS, Source
from imgkeep.core.url_host import read_authority

if TYPE_CHECKING:
    from imgkeep.core.signing import ForeignSignature

SOURCE_CHARS_MAX: Final = 8192
"""
Maximum length of a URL, before and after encoding: signed links with session tokens reach 4 kB, and request lines
rarely exceed 8 kB.
"""

QUERY_CHARS_MAX: Final = 4 * SOURCE_CHARS_MAX
"""
Maximum length of the query of `/img`: percent-encoding triples a source at most; the rest is for our own parameters.
"""

SIGNATURE_NAMES: Final = frozenset({"exp", "sig"})
"""Names of the parameters of our signature."""
OWN_NAMES: Final = SIGNATURE_NAMES | frozenset(OPTION_NAMES)
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


_SRC: Final = frozenset({"src"})

Parameters: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values of parameters."""


@dataclass(frozen=True, slots=True)
class ImgQuery:
    """
    The parsed query of `/img`.

    Attributes:
        source: The source that `src` names.
        text: `src` itself, decoded: our signatures cover this text.
        options: Our other parameters, with names from `OWN_NAMES`, decoded, in their order.
        picture: Those among them that ask for a derived picture; empty: the request is for the original.
        foreign: A valid signature of another image server on the same URL; `None`: the URL has none.
    """

    source: Source
    text: str = field(repr=False)
    options: Parameters = field(repr=False)
    picture: Parameters = field(default=(), repr=False)
    foreign: ForeignSignature | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PictureQuery:
    """
    The parsed query of `/images/<name>`.

    Attributes:
        text: The path: our signatures cover this text, as that of `src`.
        options: As in `ImgQuery`.
        picture: Likewise.
        foreign: Likewise.
    """

    text: str
    options: Parameters = field(repr=False)
    picture: Parameters = field(repr=False)
    foreign: ForeignSignature | None = None


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
        InvalidSource: `src` is missing, empty, repeated, encoded twice or no http(s) URL; or `sig` is repeated.
        InvalidOption: Another parameter is unknown or repeated.
        SourceForbidden: See `read_source`.
    """
    if len(query) > QUERY_CHARS_MAX:
        raise _too_long()
    fields = query.split("&")
    at = next((i for i, text in enumerate(fields) if _name(text) == "src"), None)
    if at is None:
        raise InvalidSource(f"src is missing: ask for {endpoint}?src=<percent-encoded URL>")
    value, ahead, behind = fields[at][len("src=") :], fields[:at], fields[at + 1 :]
    known = OWN_NAMES if endpoint == "/img" else SIGNATURE_NAMES
    if _stands_as_it_is(value, behind):
        options = _read_options(ahead, known, beside=_SRC)
        text = "&".join([value, *behind])
        return ImgQuery(read_source(text), text, options, _picture_options(options))
    options = _read_options(ahead + behind, known, beside=_SRC)
    text = _form_decoded(value)
    if not text:
        raise InvalidSource("src is empty")
    if _ENCODED_TWICE.match(text):
        raise InvalidSource("src looks percent-encoded twice; encode it once")
    return ImgQuery(read_source(text), text, options, _picture_options(options))


def read_picture_query(query: str, path: str) -> PictureQuery:
    """
    Parse the query of `/images/<name>`.

    It had no meaning before pictures had options, so parameters that are not ours (`?v=2`) mean nothing as long as none
    beside them is a picture option.

    Args:
        query: Everything behind the first `?` of the request target, not decoded.
        path: Everything before it.

    Raises:
        InvalidOption: A parameter is repeated, or is not ours beside a picture option.
        InvalidSource: The query is too long, a value is not UTF-8, or `sig` is repeated.
    """
    if len(query) > QUERY_CHARS_MAX:
        raise InvalidSource(f"the query is longer than {QUERY_CHARS_MAX} characters")
    fields = query.split("&")
    if not any(_name(text) in OPTION_NAMES for text in fields):
        return PictureQuery(path, (), ())
    options = _read_options(fields, OWN_NAMES)
    return PictureQuery(path, options, _picture_options(options))


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
    return not _ENCODED.search(value) and not all(_name(text) in {"", "src", *SIGNATURE_NAMES} for text in behind)


def _form_decoded(value: str) -> str:
    """Decode one value of application/x-www-form-urlencoded as strict UTF-8."""
    try:
        return unquote_to_bytes(value.replace("+", " ")).decode("utf-8")
    except UnicodeError:
        raise InvalidSource("a parameter is not UTF-8") from None


def _read_options(fields: list[str], known: frozenset[str], *, beside: frozenset[str] = frozenset()) -> Parameters:
    """Read parameters with names from `known`, beside others that were read already and may not come again."""
    hint = "; percent-encode src if it belongs to it" if beside else ""
    options: dict[str, str] = {}
    for text in filter(None, fields):
        name, _, value = text.partition("=")
        if name in options or name in beside:
            kind = InvalidOption if name in OPTION_NAMES else InvalidSource
            raise kind(f"{name} is given twice{hint}")
        if name not in known:
            # A name without a value may be a token of the source, so the message does not quote it.
            tellable = _TELLABLE.fullmatch(text)
            which = tellable[1] if tellable else "one of the parameters"
            raise InvalidOption(f"{which} is not a parameter of ours{hint}")
        options[name] = _form_decoded(value)
    return tuple(options.items())


def _picture_options(options: Parameters) -> Parameters:
    return tuple(option for option in options if option[0] not in SIGNATURE_NAMES) if options else ()


def own_path(source: Source, public: Source) -> str | None:
    """Return the path below our public URL that a source names, with a leading `/`; `None`: it is another URL."""
    base = public.target.rstrip("/")
    same_port = source.port == public.port or all(each.port == DEFAULT_PORTS[each.scheme] for each in (source, public))
    if source.host != public.host or not same_port or not source.target.startswith(f"{base}/"):
        return None
    return source.target.removeprefix(base)
