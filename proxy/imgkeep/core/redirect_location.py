"""
The target of a redirect, parsed as in browsers.

`Location` holds a URL in the unknown encoding of its author: the parser percent-encodes the bytes unchanged, which
names the same file to the same server. Everything else is as for a link in a page: white space around it, backslashes,
`//host`, dot segments (https://url.spec.whatwg.org, and `HttpResponseHeaders::IsRedirect` of Chromium).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes

from imgkeep.core.errors import InvalidSource
from imgkeep.core.rewrite.resolve_link import Url, read, trimmed
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from imgkeep.core.records import Source

_UNPRINTABLE: Final = re.compile(rb"[^\t\x20-\x7e]+")


class Ambiguous(ValueError):
    """A redirect without a target, or with several. The message is for people."""


def read_location(values: list[bytes], source: Source) -> Source:
    """
    Return the target of a redirect of `source`.

    Args:
        values: Values of `Location`, unchanged.
        source: The redirected source.

    Raises:
        Ambiguous: There is no target, or several different ones.
        InvalidSource: The target is no http(s) URL.
        SourceForbidden: See `read_source`.
    """
    if len(set(values)) > 1:
        raise Ambiguous("the origin redirects to several places at once")
    escaped = _UNPRINTABLE.sub(lambda found: quote_from_bytes(found[0]).encode("ascii"), b"".join(values[:1]))
    text = trimmed(escaped.decode("ascii"))
    if not text:
        raise Ambiguous("the origin redirects to nowhere")
    if text.startswith("#"):
        return source
    path, mark, query = source.target.partition("?")
    target = read(text, Url(source.scheme, source.authority, path, mark + query))
    if target is None:
        raise InvalidSource("the redirect leads to something that is not an http(s) URL")
    return read_source(str(target))
