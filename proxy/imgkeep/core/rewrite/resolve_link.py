"""
The resolution of a link in a page to an absolute http(s) URL, or to none (https://url.spec.whatwg.org).

An absolute URL stays as the page writes it, because a signature may cover it. The resolver changes only what every
browser changes before a request: white space around it, tabs and line ends in it, backslashes, dot segments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from imgkeep.core.rewrite.patterns import many

_EDGES: Final = "".join(map(chr, range(33)))
_INSIDE: Final = re.compile(r"[\t\n\r]")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*+):", re.ASCII)
_PLAIN: Final = re.compile(
    r"https?://[^/?#\\]++" + many(r"[^/?#\\]++|/(?!\.|%2e)") + r"(?:[?#].*+)?", re.ASCII | re.IGNORECASE | re.DOTALL
)
_SLASHES: Final = re.compile(r"[/\\]*+")
_TWO_SLASHES: Final = re.compile(r"[/\\]{2}")
_PARTS: Final = re.compile(r"([^?#]*+)(\?[^#]*+)?(#.*+)?", re.DOTALL)
_AUTHORITY: Final = re.compile(r"([^/\\?#]*+)(.*+)", re.DOTALL)
_DOT: Final = re.compile(r"\.|%2e", re.ASCII | re.IGNORECASE)
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]+")


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http(s) URL in pieces; `path` begins with `/`, `query` with `?` and `fragment` with `#` if there."""

    scheme: str
    authority: str
    path: str
    query: str = ""
    fragment: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}{self.query}{self.fragment}"


def resolve(text: str, base: Url | None) -> str | None:
    """Resolve `text` against `base` to an absolute http(s) URL; return `None` if there is none."""
    text = trimmed(text)
    if _PLAIN.fullmatch(text):
        return text
    url = read(text, base)
    return None if url is None else str(url)


def trimmed(text: str) -> str:
    """Return a link without the white space that browsers drop."""
    return _INSIDE.sub("", text.strip(_EDGES))


def read(text: str, base: Url | None) -> Url | None:
    """Parse a trimmed link, without a check of its host; `read_source` checks that."""
    match = _SCHEME.match(text)
    if match is None:
        return None if base is None else _relative(text, base)
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme not in {"http", "https"}:
        return None
    if base is not None and scheme == base.scheme and not _TWO_SLASHES.match(rest):
        return _relative(rest, base)
    return _with_authority(scheme, _SLASHES.sub("", rest, count=1))


def read_base(text: str, page: Url | None) -> Url | None:
    """
    Return the base URL of links behind a `<base href>`; `None` if it is no http(s) URL.

    See https://html.spec.whatwg.org/multipage/semantics.html#set-the-frozen-base-url.
    """
    text = trimmed(text)
    match = _SCHEME.match(text)
    if match is not None and match[1].lower() not in {"http", "https", "data", "javascript"}:
        return None
    return read(text, page) or page


def _with_authority(scheme: str, text: str) -> Url | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None or not match[1]:
        return None
    path, query, fragment = _split(match[2])
    return Url(scheme, match[1], _tidied(path or "/"), query, fragment)


def _relative(text: str, base: Url) -> Url | None:
    if _TWO_SLASHES.match(text):
        return _with_authority(base.scheme, _SLASHES.sub("", text, count=1))
    path, query, fragment = _split(text)
    if path:
        whole = path if path.startswith("/") else base.path.rpartition("/")[0] + "/" + path
        return Url(base.scheme, base.authority, _tidied(whole), query, fragment)
    # The page itself is no image, but another query of its path may be one.
    return Url(base.scheme, base.authority, base.path, query, fragment) if query else None


def _split(text: str) -> tuple[str, str, str]:
    path, query, fragment = _PARTS.fullmatch(text).groups("")  # type: ignore[union-attr] # it matches any text
    return path.replace("\\", "/"), query, fragment


def _tidied(path: str) -> str:
    if _DOT.search(path) is None:
        return path
    resolved: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments, 1):
        plain = _DOT.sub(".", segment)
        if plain == ".." and resolved:
            resolved.pop()
        if plain not in {".", ".."}:
            resolved.append(segment)
        elif number == len(segments):
            resolved.append("")
    return "/" + "/".join(resolved)


def with_query_in(url: str, codec: str) -> str:
    """
    Return `url` with the query percent-encoded as from a page in an old encoding; its path is UTF-8 everywhere.

    See https://url.spec.whatwg.org/#query-state, and #percent-encode-after-encoding for what the encoding lacks.
    """
    path, query, fragment = _PARTS.fullmatch(url).groups("")  # type: ignore[union-attr] # it matches any text
    return (
        path
        + _BEYOND_ASCII.sub(lambda found: quote(found[0].encode(codec, "xmlcharrefreplace"), safe=""), query)
        + fragment
    )
