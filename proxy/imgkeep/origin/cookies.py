"""
The cookies of one fetch: a host gets back, within the fetch, the cookies that it has set, and no other host gets them.

Some sites redirect to the same URL until a cookie comes back. So a fetch carries cookies as a browser would that has
none before it. `Path`, `Secure`, `Max-Age` and `Expires` hold as in a browser; `Domain` may name no other site and
opens no other host. aiohttp's jar decides that. It would unquote values or quote them, so the request carries them as
the jar stored them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.core.records import Source

COOKIES_MAX: Final = 64
"""Maximum number of cookies that a fetch takes; browsers take 180 of a site in all."""
COOKIE_BYTES_MAX: Final = 32_768
"""Maximum size of these cookies, names and attributes included; a request carries 8 kB of them."""

# Over plain http browsers take no cookie that is marked as secure (RFC 6265bis, 5.7).
_SECURE: Final = re.compile(r"\s*__(?:secure|host)-|[^;]*;(?:[^;]*;)*\s*secure\s*(?:[;=]|$)", re.ASCII | re.IGNORECASE)


class Cookies:
    """The cookies of one fetch, its retries included."""

    def __init__(self) -> None:
        self._jars: dict[str, aiohttp.CookieJar] = {}
        self._cookies_left = COOKIES_MAX
        self._bytes_left = COOKIE_BYTES_MAX

    def take(self, source: Source, values: Sequence[str]) -> None:
        """Remember the cookies that an answer to `source` sets, as far as there is room."""
        taken = [value for value in values if self._has_room(source, value)]
        if not taken:
            return
        jar = self._jars.get(source.host)
        if jar is None:
            # `unsafe`: an IP address is a host like any other.
            jar = self._jars[source.host] = aiohttp.CookieJar(unsafe=True, quote_cookie=False)
        jar.update_cookies_from_headers(taken, _url(source))

    def fields(self, source: Source) -> dict[str, str]:
        """Return the header fields that a request for `source` carries."""
        jar = self._jars.get(source.host)
        if jar is None:
            return {}
        stored = {(cookie.key, cookie.value): cookie.coded_value for cookie in jar}
        chosen = jar.filter_cookies(_url(source)).values()
        value = "; ".join(f"{cookie.key}={stored[cookie.key, cookie.value]}" for cookie in chosen)
        return {"Cookie": value} if value else {}

    def _has_room(self, source: Source, value: str) -> bool:
        if self._cookies_left == 0 or len(value) > self._bytes_left:
            return False
        if source.scheme != "https" and _SECURE.match(value):
            return False
        self._cookies_left -= 1
        self._bytes_left -= len(value)
        return True


def _url(source: Source) -> URL:
    return URL(source.url, encoded=True)
