"""
The canonical form of a link: one text for all spellings of one URL, and never one text for two URLs.

Rules:
- Decoding applies only to percent-escapes of unreserved characters (RFC 3986, 6.2.2.2); the others get upper-case
  digits. `%2F` stays, `//` stays, the case of paths and queries stays.
- Sorting uses the parameter's name alone: equal names keep their order; if one parameter has no `=`, all keep theirs.
- `http` and `https` count as one, and so do their ports: 80 and 443 are left out. Any other port stays.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from operator import itemgetter
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity.jwt import decode_base64
from imgkeep.core.records import DEFAULT_PORTS
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgkeep.core.records import Source

Field = tuple[str, str, str]
"""A parameter: its name, `=` or nothing, its value; as it stands in the query."""

_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ODD_ESCAPE: Final = re.compile(
    r"%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee]|[0-9A-Fa-f][a-f]|[a-f][0-9A-F])", re.ASCII
)
_DIGITS: Final = "0123456789abcdefABCDEF"
_CHARS: Final = {high + low: chr(int(high + low, 16)) for high in _DIGITS for low in _DIGITS}
_BASE64: Final = re.compile(r"[A-Za-z0-9_/-]+=*", re.ASCII)
_LOOSE_LINK: Final = re.compile(
    r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*([^/\\?#\s]*\.[^/\\?#\s]*|[^/\\?#\s]*\[[^\[\]/]*\][^/?#]*)([^?#]*)([^#]*)"
)
"""Pattern whose parts end where the next may begin: it reads a long run of one character once, not once per start."""
_HOSTLIKE: Final = re.compile(r"(?<![^/\\=:])[^/\\?#&=:\s]*\.[^/\\?#&=\s]*")
_UNQUOTED_MAX: Final = 3
INTERNATIONAL_MAX: Final = 16
"""Maximum number of international names that one link may have converted to ASCII; each costs 50 microseconds."""
_NAME: Final = itemgetter(0)
_PORTS_FOLDED: Final = frozenset(DEFAULT_PORTS.values())


def canonical_escapes(text: str) -> str:
    """Return `text` with each escape in its canonical form."""
    return _ODD_ESCAPE.sub(_canonical_escape, text) if "%" in text else text


def _canonical_escape(escape: re.Match[str]) -> str:
    char = chr(int(escape[0][1:], 16))
    return char if char in _UNRESERVED else escape[0].upper()


def decoded(text: str) -> str:
    """Return `text` with its escapes decoded byte by byte: enough for a shape, which is ASCII."""
    if "%" not in text:
        return text
    first, *rest = text.split("%")
    return first + "".join([_CHARS[part[:2]] + part[2:] for part in rest])


def read_fields(query: str) -> list[Field]:
    """Split a query at `&` and nowhere else; drop empty parts."""
    fields = [part.partition("=") for part in query.split("&") if part]
    if "%" in query:
        fields = [field if "%" not in field[0] else (canonical_escapes(field[0]), *field[1:]) for field in fields]
    return fields


def write_query(fields: Iterable[Field]) -> str:
    """Return the canonical query with its `?`; empty without fields."""
    ordered = list(fields)
    if not ordered:
        return ""
    if len(ordered) > 1 and all(equals for _, equals, _ in ordered):
        ordered.sort(key=_NAME)
    return "?" + canonical_escapes("&".join([name + equals + value for name, equals, value in ordered]))


def write_port(source: Source) -> str:
    """Return `:port` where the identity needs it, else nothing."""
    return "" if source.port in _PORTS_FOLDED else f":{source.port}"


def read_nested(text: str) -> tuple[Source, Callable[[str], str]] | None:
    """
    Read a URL inside another one, percent-encoded or in base64url; return it with the function that encodes one so.

    `None` if it is no absolute http(s) URL that imgkeep accepts, or has a literal `+`, which may be a space.
    """
    try:
        url, write = unquote(text, errors="strict"), _quoted
        if not _is_absolute(url):
            data = decode_base64(text.replace("/", "")) if _BASE64.fullmatch(text) else None
            url, write = (data or b"").decode(), _in_base64
        if _is_absolute(url) and "+" not in text:
            return read_source(url), write
    except (UnicodeDecodeError, SourceRejected):
        pass
    return None


def read_place(text: str) -> str | None:
    """
    Return host and path of the link that a proxy may read in `text`, in any spelling; None: `text` has none.

    Proxies accept more than imgkeep: no scheme, `ssl:`, user information, backslashes, double escapes. imgkeep compares
    the result with host lists and never fetches it.
    """
    found = _split_loosely(text)
    if found is None:
        return None
    name, path, _ = found
    try:
        return read_source(f"https://{name}/").host + (path or "/")
    except SourceRejected:
        return name.strip("[].").lower() + (path or "/")


def read_loose(text: str) -> Source | None:
    """Return the link that a proxy may read in `text`, if imgkeep would accept it in a regular spelling."""
    found = _split_loosely(text)
    try:
        return None if found is None else read_source("https://" + "".join(found))
    except SourceRejected:
        return None


def read_hosts(text: str) -> list[str]:
    """Return every possible host of a link, followed by `/`, in a text that is too large to be read as links."""
    for _ in range(_UNQUOTED_MAX):
        text = unquote(text)
    hosts = dict.fromkeys(host.rpartition("@")[2].rstrip(".").lower() for host in _HOSTLIKE.findall(text))
    international = [host for host in hosts if not host.isascii()][:INTERNATIONAL_MAX]
    return [f"{host}/" for host in (*hosts, *map(_ascii_host, international))]


def _ascii_host(name: str) -> str:
    try:
        return read_source(f"https://{name}/").host
    except SourceRejected:
        return name


def _split_loosely(text: str) -> tuple[str, str, str] | None:
    for _ in range(_UNQUOTED_MAX):
        text = unquote(text)
    match = _LOOSE_LINK.match(text)
    if match is None:
        return None
    authority, path, rest = match.groups()
    authority = authority.rpartition("@")[2]
    name = authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]
    return (name, path.replace("\\", "/"), rest) if name else None


def _is_absolute(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _quoted(url: str) -> str:
    return quote(url, safe="/:")


def _in_base64(url: str) -> str:
    return urlsafe_b64encode(url.encode()).rstrip(b"=").decode()
