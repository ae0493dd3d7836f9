"""Requests for images to an imgkeep in this process: one that stores an image, and what was stored by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgkeep.bootstrap.server import SERVICES
from imgkeep.web.fastpath.fast_path import FAST_PATH
from tests.support.raw_http import ask, target_of

if TYPE_CHECKING:
    from imgkeep.bootstrap.services import Services
    from imgkeep.web.fastpath.fast_path import FastPath
    from tests.support.raw_http import Answer
    from tests.support.server import Imgkeep

IMAGE_FIELDS = {
    "cache-control": "public, max-age=31536000, immutable",
    "accept-ranges": "bytes",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "Cache-Status, Content-Location, Content-Range, ETag, Retry-After",
    "cross-origin-resource-policy": "cross-origin",
    "server": "imgkeep",
}
"""Header fields of every image."""


def services_of(imgkeep: Imgkeep) -> Services:
    app = imgkeep.client.app
    assert app is not None
    return app[SERVICES]


def fast_path_of(imgkeep: Imgkeep) -> FastPath:
    app = imgkeep.client.app
    assert app is not None
    return app[FAST_PATH]


async def fills_done(imgkeep: Imgkeep) -> None:
    """Wait until no fill is running."""
    await services_of(imgkeep).image_service.drain()


def count_readers(imgkeep: Imgkeep) -> int:
    """Return the number of readers of all running fills."""
    return sum(fill.body._holders - 1 for fill in services_of(imgkeep).image_service._fills.running)


async def store_image(imgkeep: Imgkeep, url: str) -> Answer:
    """Have an image fetched and stored; return the response."""
    answer = await ask(imgkeep, target_of(url))
    assert answer.status == 200
    await fills_done(imgkeep)
    return answer


async def cached_target(imgkeep: Imgkeep, url: str) -> str:
    """Store an image, and have its response cached; return its target."""
    await store_image(imgkeep, url)
    assert (await ask(imgkeep, target_of(url))).headers["cache-status"] == "imgkeep; hit"
    return target_of(url)


class HandlerCalls:
    """Counts the requests for images that reach a handler."""

    def __init__(self, imgkeep: Imgkeep) -> None:
        self.number = 0
        image_service = services_of(imgkeep).image_service
        deliver = image_service.deliver

        async def counted(*arguments: Any) -> Any:
            self.number += 1
            return await deliver(*arguments)

        image_service.deliver = counted  # type: ignore[method-assign, assignment]
