"""
Responses of images: validators, ranges, HEAD, redirects.

Hit and miss take the same way: a reader of a body that still grows only waits longer for its next bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.http_headers import cache_status, etag_matches
from imgkeep.core.range_header import Span, range_applies, read_range
from imgkeep.core.records import Format
from imgkeep.images.request_context import CacheStatus
from imgkeep.web.fastpath.response_cache import FRESHNESS_LIFETIME_S, CachedResponse
from imgkeep.web.fastpath.response_variants import name_variant
from imgkeep.web.fastpath.response_writer import encode_specific_fields
from imgkeep.web.image_headers import CACHE_STATUS, EXPOSED_HEADERS, IMAGE_HEADERS, SVG_CSP, YEAR_S
from imgkeep.web.request_response import BodyRange, HttpResponse, encode_fields, piece_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.clock import Clock
    from imgkeep.images.request_context import Delivery, RedirectToObject, RedirectToSource
    from imgkeep.images.service import ImageService
    from imgkeep.web.fastpath.response_cache import ResponseCache
    from imgkeep.web.request_response import ImageRequest

REDIRECT_MAX_AGE_S: Final = 300
"""Maximum time until a change of the configuration reaches all clients."""

PROVISIONAL_MAX_AGE_S: Final = 60
"""
Maximum time of a provisional image in a cache, because a second fill may bring another image: long enough for a second
view of a page, short enough for a correction.
"""


class ImageResponses:
    """
    Makes responses of what the image service found, and fills the response cache.

    Args:
        image_service: Tells whether a delivery is still current.
        cache: Keeps responses for later requests for the same target; `None`: there is no fast path.
        public_base_url: `server.public_url` without a slash at its end; empty: not configured.
        redirect_status: `delivery.redirect_status`.
        clock: The time of day.
        timer: Monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - by name, but for two
        self,
        image_service: ImageService,
        cache: ResponseCache | None,
        *,
        public_base_url: str,
        redirect_status: int,
        clock: Clock,
        timer: Callable[[], float],
    ) -> None:
        self._image_service = image_service
        self._cache = cache
        self._public_base_url = public_base_url
        self._redirect_status = redirect_status
        self._clock = clock
        self._timer = timer

    def redirect(self, request: ImageRequest, to: RedirectToSource) -> HttpResponse:
        """Send the client to the source itself, for a while: the image may leave that place at any time."""
        request.request_log.outcome = "redirect"
        headers = {
            "Location": to.url,
            "Cache-Control": f"public, max-age={REDIRECT_MAX_AGE_S}",
            "Cache-Status": cache_status("fwd=uri-miss", "detail=redirect"),
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
            "Referrer-Policy": "no-referrer",
            **_vary(request),
        }
        return HttpResponse(self._redirect_status, headers)

    def redirect_to_object(self, request: ImageRequest, to: RedirectToObject) -> HttpResponse:
        """
        Send the client to the object, unless the client has it already.

        Without an `ETag`: a client that revalidates a redirect would go on using the link it holds.
        """
        if etag_matches(request.field("If-None-Match") or "", to.etag):
            request.request_log.outcome = CacheStatus.HIT.value
            return HttpResponse(
                304,
                {
                    **self._fixed_headers(
                        request,
                        immutable=to.immutable,
                        is_svg=(to.object_name or "").endswith(f".{Format.SVG.extension}"),
                    ),
                    "ETag": to.etag,
                    "Cache-Status": cache_status("hit"),
                    **_vary(request),
                },
            )
        request.request_log.outcome = "redirect"
        max_age_s = min(to.address.max_age_s, self._permitted_s(request, immutable=to.immutable))
        headers = {
            "Location": to.address.url,
            "Cache-Control": f"{'private' if to.address.private else 'public'}, max-age={max_age_s}",
            "Cache-Status": cache_status("hit"),
            **self._content_location(to.permanent_url, to.object_name),
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
            "Cross-Origin-Resource-Policy": "cross-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **_vary(request),
        }
        return HttpResponse(self._redirect_status, headers)

    async def respond(self, request: ImageRequest, delivery: Delivery) -> HttpResponse:
        """Answer with a delivery. Close its body, unless the response has a range of it."""
        request.request_log.key, request.request_log.outcome = delivery.key, delivery.cache_status.value
        response = None
        try:
            response = await self._respond(request, delivery)
            return response
        finally:
            if response is None or not isinstance(response.body, BodyRange):
                await delivery.body.aclose()

    async def _respond(self, request: ImageRequest, delivery: Delivery) -> HttpResponse:
        headers = self._headers(request, delivery)
        body = delivery.body
        self._cache_response(request, delivery, headers)
        if etag_matches(request.field("If-None-Match") or "", delivery.etag):
            return HttpResponse(304, headers)
        size = body.size
        wanted = None if request.head else request.field("Range")
        if wanted is not None and not range_applies(request.field("If-Range"), delivery.etag):
            wanted = None
        if size is None and (wanted is not None or not request.accepts_chunked):
            size = await body.wait_for_size()
        headers["Content-Type"] = delivery.format.media_type
        span = None if wanted is None or size is None else read_range(wanted, size)
        if span == "unsatisfiable":
            del headers["Content-Type"]
            headers |= {"Content-Range": f"bytes */{size}", "Cache-Control": "no-store"}
            return HttpResponse(416, headers)
        start, end, status = 0, size, 200
        if isinstance(span, Span):
            start, end, status = span.start, span.end, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if end is not None:
            headers["Content-Length"] = str(end - start)
        if request.head:
            return HttpResponse(status, headers)
        # Before the status is sent: a failure here can still become a typed error.
        first = await body.read(start, piece_size(start, end))
        return HttpResponse(status, headers, BodyRange(body, start, end, first, delivery.growing))

    def _permitted_s(self, request: ImageRequest, *, immutable: bool) -> int:
        """Return for how many seconds caches may show the response: until the signature ends, where one was needed."""
        end, longest = request.request_log.permitted_until, YEAR_S if immutable else PROVISIONAL_MAX_AGE_S
        return longest if end is None else min(longest, max(0, int(end - self._clock().timestamp())))

    def _fixed_headers(self, request: ImageRequest, *, immutable: bool, is_svg: bool) -> dict[str, str]:
        seconds = self._permitted_s(request, immutable=immutable)
        headers = {**IMAGE_HEADERS, "Content-Security-Policy": SVG_CSP} if is_svg else IMAGE_HEADERS
        return headers if seconds >= YEAR_S else {**headers, "Cache-Control": f"public, max-age={seconds}"}

    def _headers(self, request: ImageRequest, delivery: Delivery) -> dict[str, str]:
        return {
            **self._fixed_headers(request, immutable=delivery.immutable, is_svg=delivery.format is Format.SVG),
            "ETag": delivery.etag,
            "Cache-Status": CACHE_STATUS[delivery.cache_status],
            "Content-Disposition": f'inline; filename="{delivery.name}"',
            **self._content_location(delivery.permanent_url, delivery.object_name),
            **_vary(request),
        }

    def _cache_response(self, request: ImageRequest, delivery: Delivery, headers: Mapping[str, str]) -> None:
        """Keep the response for later requests for the same target, if the bytes that they need are in memory."""
        body = delivery.body
        if self._cache is None or body.cache_entry is None or body.size is None or not delivery.repeatable:
            return
        # No await between this question and `put`: from then on the cache learns of every change.
        if not self._image_service.is_current(delivery):
            return
        response = CachedResponse(
            route=request.route,
            key=delivery.key,
            etag=delivery.etag,
            fields=encode_specific_fields(headers),
            media_type=encode_fields([("Content-Type", delivery.format.media_type)]),
            size=body.size,
            cache_entry=body.cache_entry,
            fresh_until=self._timer() + (FRESHNESS_LIFETIME_S if delivery.immutable else PROVISIONAL_MAX_AGE_S),
            permitted_until=request.request_log.permitted_until,
            max_age_s=YEAR_S if delivery.immutable else PROVISIONAL_MAX_AGE_S,
            is_svg=delivery.format is Format.SVG,
        )
        target = request.target.encode("utf-8", "surrogateescape")
        self._cache.put(name_variant(target, request.fields) if request.varies else target, response)

    def _content_location(self, permanent_url: str | None, object_name: str | None) -> dict[str, str]:
        """Return the field with the URL of an object; its path here where no URL is configured (RFC 9110, 8.7)."""
        if permanent_url is None and object_name is None:
            return {}
        return {"Content-Location": permanent_url or f"{self._public_base_url}/images/{object_name}"}


def _vary(request: ImageRequest) -> dict[str, str]:
    """Return the field that keeps caches from showing a negotiated format to other clients (RFC 9110, 12.5.5)."""
    return {"Vary": "Accept"} if request.varies else {}
