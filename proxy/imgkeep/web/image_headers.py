"""
Header fields of images, with aiohttp and on the fast path: caching, sandboxing, access for scripts of other pages.
"""

from __future__ import annotations

from typing import Final

from imgkeep.core.http_headers import cache_status
from imgkeep.core.records import Format
from imgkeep.images.request_context import CacheStatus

SERVER_NAME: Final = "imgkeep"
"""The `Server` field: no versions, which help attackers alone."""

YEAR_S: Final = 31_536_000
"""Maximum time of a response in a cache (RFC 9111 knows no "for ever"; a year is the convention)."""

EXPOSED_HEADERS: Final = "Cache-Status, Content-Location, Content-Range, ETag, Retry-After"
"""Header fields that scripts of other sites may read (WHATWG Fetch, `Access-Control-Expose-Headers`)."""

IMAGE_CSP: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""The `Content-Security-Policy` of an image that is opened in a tab: it runs and loads nothing."""
SVG_CSP: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; sandbox"
"""The policy of an SVG image, which may also show pictures and fonts that it contains."""

IMAGE_HEADERS: Final = {
    "Cache-Control": f"public, max-age={YEAR_S}, immutable",
    "Accept-Ranges": "bytes",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": IMAGE_CSP,
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Header fields of every image."""

CACHE_STATUS: Final = {
    CacheStatus.HIT: cache_status("hit"),
    CacheStatus.STORED: cache_status("fwd=uri-miss", "stored"),
    CacheStatus.COLLAPSED: cache_status("fwd=uri-miss", "collapsed"),
    CacheStatus.DERIVED: cache_status("hit", "detail=derived"),
    CacheStatus.NOT_STORED: cache_status("fwd=uri-miss", "detail=not-stored"),
}

HIT_HEADERS: Final = {**IMAGE_HEADERS, "Cache-Status": CACHE_STATUS[CacheStatus.HIT]}
"""Header fields of every hit; an SVG image has its own policy."""


def csp_of(image_format: Format) -> str:
    """Return the `Content-Security-Policy` of an image."""
    return SVG_CSP if image_format is Format.SVG else IMAGE_CSP
