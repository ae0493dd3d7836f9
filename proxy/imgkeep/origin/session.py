"""
The HTTP session of the origin client: aiohttp's, with every connection bounded.

What aiohttp leaves to its user (measured on 3.14) and this module settles: it follows redirects, keeps cookies over all
hosts, decodes content codings without a limit, and writes no `?` of an empty query, which a signature may cover.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from yarl import URL

from imgkeep.core.http_headers import CDN_ID
from imgkeep.core.response_head import FIELDS_MAX
from imgkeep.origin.bounded_connection import HEAD_BYTES_MAX, OriginConnection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from imgkeep.config import Fetch
    from imgkeep.core.records import Source
    from imgkeep.origin.ssrf_guard import AddressGuard

READ_BYTES: Final = 65_536
"""Maximum number of bytes of a body that wait for their reader before aiohttp stops reading."""


PARSER_LIMITS: Final = {
    "read_bufsize": READ_BYTES,
    # One field may be the whole head, whose bytes the connection counts.
    "max_line_size": HEAD_BYTES_MAX,
    "max_field_size": HEAD_BYTES_MAX,
    "max_headers": FIELDS_MAX,
}
"""Limits of aiohttp's parser."""


class _NoCookies(aiohttp.DummyCookieJar):
    """No cookies at all: `cookies.py` keeps those of one fetch. aiohttp's own jar parses them first."""

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Leave them unread."""


def open_session(
    settings: Fetch, guard: AddressGuard, *, ssl_context: ssl.SSLContext | None, user_agent: str
) -> aiohttp.ClientSession:
    """Open the session. `guard` judges every address."""
    connector = aiohttp.TCPConnector(
        resolver=guard,
        socket_factory=guard.connect,
        ssl=ssl_context or True,
        limit=0,  # `concurrency.py` limits, and with bounded queues
    )
    # A private name of aiohttp: tests/attacks/test_hostile_origins.py fails when an upgrade changes what it means.
    factory: partial[Any] = partial(OriginConnection, asyncio.get_running_loop())
    connector._factory = factory  # noqa: SLF001
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=_NoCookies(),
        headers={
            "Accept": settings.accept or "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
            "Via": f"1.1 {CDN_ID}",
            "CDN-Loop": CDN_ID,
        },
        timeout=make_timeout(settings, settings.connect_timeout_s),
        auto_decompress=False,
        trust_env=False,
        **cast("Any", PARSER_LIMITS),
    )


def make_timeout(settings: Fetch, connect_timeout_s: float) -> aiohttp.ClientTimeout:
    """Return the time limits of one request; the total spans redirects and retries, so it is the client's."""
    return aiohttp.ClientTimeout(
        total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s, sock_read=settings.read_timeout_s
    )


def make_url(source: Source) -> URL:
    """
    Return a URL whose request target is that of `source`, byte for byte: a signature may cover its very spelling.

    All of the target is the path here, because `yarl` drops the `?` of an empty query.
    """
    return URL.build(scheme=source.scheme, authority=source.authority, path=source.target, encoded=True)
