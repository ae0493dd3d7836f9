"""Handlers of images: `/img?src=`, the permanent URL `/images/<digest>.<ext>`, and file names from before an import."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiohttp import HttpVersion11, web

from imgkeep.core.data_url import identify_legacy
from imgkeep.core.errors import LoopDetected, OriginError, RateLimited, SourceRejected
from imgkeep.core.source_url import own_path, read_img_query, read_picture_query
from imgkeep.images.request_context import RedirectToObject, RedirectToSource
from imgkeep.web.aiohttp_adapter import as_aiohttp_response, presence_of, send_body_range
from imgkeep.web.request_response import BodyRange, ImageRequest
from imgkeep.web.request_state import IS_IMAGE, REQUEST_LOG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from imgkeep.core.derived.options import PictureOptions
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.core.source_url import ImgQuery
    from imgkeep.images.lookup_rate_limit import MissLimiter
    from imgkeep.images.request_context import Delivery, RequestContext
    from imgkeep.images.service import ImageService
    from imgkeep.web.auth import Auth
    from imgkeep.web.picture_requests import PictureRequests
    from imgkeep.web.request_response import HttpResponse
    from imgkeep.web.responses import ImageResponses

    Handler = Callable[[ImageRequest], Awaitable[HttpResponse]]

T = TypeVar("T")

IMG_PATH: Final = "/img"
IMAGES_PATH: Final = "/images/{name}"

_IMG: Final = b"/img?"
_IMAGES: Final = re.compile(rb"/images/([0-9a-z.]+)(?:\?.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ImageHandlers:
    """
    The handlers of images, whichever way a request came.

    Attributes:
        pictures: Opens derived pictures.
        public: `server.public_url`, read; `None`: not configured.
        miss_limiter: Limits lookups of images that are not stored; `None`: such a lookup costs nothing.
    """

    image_service: ImageService
    auth: Auth
    responses: ImageResponses
    pictures: PictureRequests
    public: Source | None
    miss_limiter: MissLimiter | None = None

    def find_handler(self, target: bytes) -> tuple[Handler, str, str] | None:
        """Return the handler of a request target, its route, and the name in it; `None` if the target is not plain."""
        if target.startswith(_IMG):
            return self.serve_source, IMG_PATH, ""
        match = _IMAGES.fullmatch(target)
        return None if match is None else (self.serve_object, IMAGES_PATH, match[1].decode())

    async def serve_source(self, request: ImageRequest) -> HttpResponse:
        """Serve the image behind a source URL, or a picture of it."""
        return await self.serve_query(request, read_img_query(request.target.partition("?")[2]))

    async def serve_query(self, request: ImageRequest, query: ImgQuery) -> HttpResponse:
        """Serve the image that a query names, or a picture of it."""
        source = query.source
        request.request_log.host = source.host
        try:
            request_context = self.auth.authorize_image(request, query)
        except SourceRejected:
            request.request_log.set_source(source, self.image_service.identify(source))
            raise
        options = self.pictures.read_options(request, query)
        own = None if self.public is None else own_path(source, self.public)
        if own is not None:
            return await self._serve_own(request, own, options)
        info = self.image_service.identify(source)
        request.request_log.set_source(source, info)
        lookup = self._open_source(request, source, info, options, request_context)
        # A known image is no miss, and no earlier misses of its client keep it back.
        known = self.image_service.records.cached(info.key) is not None
        return await self._respond(request, await (lookup if known else self._look_up(request, lookup)))

    async def serve_object(self, request: ImageRequest) -> HttpResponse:
        """Serve an object under its permanent URL, or a picture of it."""
        path, _, query = request.target.partition("?")
        options = None
        if query:
            options = self.pictures.read_options(request, read_picture_query(query, path))
        delivery = await self._find(request, request.name, options)
        if delivery is None:
            raise web.HTTPNotFound
        return await self._respond(request, delivery)

    async def serve_legacy(self, request: ImageRequest, mount: str) -> HttpResponse:
        """Serve an image that was imported under its old name."""
        info = identify_legacy(mount, request.name)
        request.request_log.key = info.key
        delivery = await self._look_up(request, self.image_service.deliver_stored(info.key, head=request.head))
        if delivery is None:
            raise web.HTTPNotFound
        return await self._respond(request, delivery)

    async def _open_source(
        self,
        request: ImageRequest,
        source: Source,
        info: SourceInfo,
        options: PictureOptions | None,
        request_context: RequestContext,
    ) -> Delivery | RedirectToObject | RedirectToSource:
        if options is not None:
            found = await self.pictures.open_of_source(request, source, info, options, request_context)
            if found is not None:
                return found
        return await self.image_service.deliver(source, info, request_context)

    async def _serve_own(self, request: ImageRequest, path: str, options: PictureOptions | None) -> HttpResponse:
        """
        Serve a source that is a permanent URL of this server, or a picture of it.

        The options are those of the request or, where it has none, those of that URL.

        Raises:
            LoopDetected: Any other URL of this server is a loop.
        """
        path, _, query = path.partition("?")
        folder, _, name = path.rpartition("/")
        if options is None and folder == "/images":
            options = self.pictures.read_options(request, read_picture_query(query, path))
        delivery = await self._find(request, name, options) if folder == "/images" else None
        if delivery is None:
            raise LoopDetected("the source is this server")
        return await self._respond(request, delivery)

    async def _find(
        self, request: ImageRequest, name: str, options: PictureOptions | None
    ) -> Delivery | RedirectToObject | None:
        return await self._look_up(request, self._open_object(request, name, options))

    async def _open_object(
        self, request: ImageRequest, name: str, options: PictureOptions | None
    ) -> Delivery | RedirectToObject | None:
        if options is not None:
            found = await self.pictures.open_of_object(request, name, options)
            if found is not None:
                return found
        return await self.image_service.deliver_object(name, head=request.head)

    async def _look_up(self, request: ImageRequest, lookup: Coroutine[Any, Any, T]) -> T:
        """
        Look an image up, and count a miss against the client.

        Raises:
            RateLimited: The client has had too many misses. Or as `lookup`.
        """
        limiter = self.miss_limiter
        if limiter is None:
            return await lookup
        client = self.auth.identify_client(request)
        try:
            limiter.check(client)
        except RateLimited:
            lookup.close()
            raise
        try:
            found = await lookup
        except (SourceRejected, OriginError):
            limiter.note(client)
            raise
        if found is None:
            limiter.note(client)
        return found

    async def _respond(
        self, request: ImageRequest, found: Delivery | RedirectToObject | RedirectToSource
    ) -> HttpResponse:
        match found:
            case RedirectToSource():
                return self.responses.redirect(request, found)
            case RedirectToObject():
                return self.responses.redirect_to_object(request, found)
            case _:
                return await self.responses.respond(request, found)


IMAGES: Final = web.AppKey("images", ImageHandlers)


def as_aiohttp_handler(
    find: Callable[[ImageHandlers], Handler],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler for aiohttp; `find` returns the handler of images that it calls."""

    async def handle(request: web.Request) -> web.StreamResponse:
        request[IS_IMAGE] = True
        handlers = request.app[IMAGES]
        resource = request.match_info.route.resource
        image_request = ImageRequest(
            route="" if resource is None else resource.canonical,
            name=request.match_info.get("name", ""),
            head=request.method == "HEAD",
            # As it came, because decoding loses the difference between the two ways of writing `src`.
            target=request.raw_path,
            fields=request.headers,
            remote=request.remote or "",
            accepts_chunked=request.version >= HttpVersion11,
            request_log=request[REQUEST_LOG],
            presence=presence_of(request),
        )
        # The fast path compares the host of its requests with the names of this server when it reads their fields.
        handlers.auth.require_own_host(image_request.field("Host"))
        response = await find(handlers)(image_request)
        if isinstance(response.body, BodyRange):
            return await send_body_range(request, response, response.body)
        if image_request.head:
            return web.StreamResponse(status=response.status, headers=response.headers)
        return as_aiohttp_response(response)

    return handle
