"""
The peer API for other nodes: what a node shows to the members of its cluster, over TCP.

| route | answer |
|---|---|
| `GET /fills/<name>` | the progress of a fill of this node (`cluster/progress.py`); 204: it runs none of this name |
| `GET /fills/<name>/end` | 204 as soon as this node runs no fill or derivation of this name |
| `GET /objects/<digest>.<ext>` | an object on the disk of this node; 404: there is none, or it is blocked |
| `GET /pictures/<digest>/<options>.<ext>` | a derived picture on that disk; 404: there is none, or it is blocked |
| `GET /failures` | the recent failures of all workers of this node |
| `GET /confirmed/<milliseconds>` | 200: the database has confirmed this member within that time; 204: it has not |

Rules:
- `peer_listener.py` authenticates a request before this module sees it.
- A request reaches any worker of a node. A fill of another one is that of its lease: this worker passes on what the
  other one says over its Unix socket.
- There is nothing to write: all that changes goes through the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
from aiohttp import web

from imgkeep.cluster.fill_route import END_ROUTE, FILL_ROUTE, follow_fill, stream
from imgkeep.core.errors import OriginError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.cluster.workers.peers import WorkerPeers
    from imgkeep.images.failure_history import RecentFailure
    from imgkeep.images.service import ImageService
    from imgkeep.storage.interfaces import Body

PIECE_BYTES: Final = 262_144
"""Size of the pieces in which an object is read."""
_OBJECT_ROUTE: Final = r"/objects/{name:[0-9a-f]{64}\.[a-z]{2,4}}"
_PICTURE_ROUTE: Final = r"/pictures/{name:[0-9a-f]{64}/[a-z0-9.-]{1,130}}"


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """
    The other workers of this node.

    Attributes:
        peers: Sends requests to them.
        find_holder: Returns which of them holds a lease; `None`: none does.
    """

    peers: WorkerPeers
    find_holder: Callable[[str], str | None]


def make_node_api(  # noqa: PLR0913 - all but one by keyword
    images: ImageService,
    *,
    workers: LocalWorkers | None,
    wait: Callable[[str], Awaitable[None]],
    fetch_object: Callable[[str], Awaitable[Body | None]],
    fetch_picture: Callable[[str], Awaitable[Body | None]],
    failures: Callable[[], Awaitable[Sequence[RecentFailure]]],
    is_confirmed_within: Callable[[float], bool],
) -> web.Application:
    """
    Make the application that answers other nodes.

    Args:
        images: The service whose fills they follow.
        workers: The other workers of this machine; `None`: there are none.
        wait: Waits until this worker runs no fill or derivation of a name.
        fetch_object: Opens an object on the disk of this machine that may be shown.
        fetch_picture: Opens a picture there, by the path behind `v1/derived/`.
        failures: Returns the recent failures of this machine.
        is_confirmed_within: As `Membership.is_confirmed_within`.
    """
    routes = _Routes(images, workers, wait, fetch_object, fetch_picture, failures, is_confirmed_within)
    app = web.Application(client_max_size=0)
    app.router.add_get(FILL_ROUTE, routes.follow, allow_head=False)
    app.router.add_get(END_ROUTE, routes.wait_for_end, allow_head=False)
    app.router.add_get(_OBJECT_ROUTE, routes.send_object, allow_head=False)
    app.router.add_get(_PICTURE_ROUTE, routes.send_picture, allow_head=False)
    app.router.add_get("/failures", routes.show_failures, allow_head=False)
    app.router.add_get(r"/confirmed/{milliseconds:\d{1,12}}", routes.show_confirmed, allow_head=False)
    return app


@dataclass(frozen=True, slots=True)
class _Routes:
    """The handlers."""

    images: ImageService
    workers: LocalWorkers | None
    wait: Callable[[str], Awaitable[None]]
    fetch_object: Callable[[str], Awaitable[Body | None]]
    fetch_picture: Callable[[str], Awaitable[Body | None]]
    failures: Callable[[], Awaitable[Sequence[RecentFailure]]]
    is_confirmed_within: Callable[[float], bool]

    async def follow(self, request: web.Request) -> web.StreamResponse:
        relayed = await self._relay(request)
        return relayed or await follow_fill(request, self.images, share_file=False)

    async def wait_for_end(self, request: web.Request) -> web.StreamResponse:
        relayed = await self._relay(request)
        if relayed is None:
            await self.wait(request.match_info["name"])
        return relayed or web.Response(status=204)

    async def send_object(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, self.fetch_object)

    async def send_picture(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, self.fetch_picture)

    async def _send(self, request: web.Request, fetch: Callable[[str], Awaitable[Body | None]]) -> web.StreamResponse:
        try:
            body = await fetch(request.match_info["name"])
        except StorageError:
            return web.Response(status=503)
        if body is None:
            return web.Response(status=404)
        try:
            return await stream(request, _read_all(body), await body.wait_for_size())
        finally:
            await body.aclose()

    async def show_failures(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.msgpack.encode(await self.failures()))

    async def show_confirmed(self, request: web.Request) -> web.Response:
        # The proof of an answer covers its status, and no body.
        is_confirmed = self.is_confirmed_within(int(request.match_info["milliseconds"]) / 1000)
        return web.Response(status=200 if is_confirmed else 204)

    async def _relay(self, request: web.Request) -> web.StreamResponse | None:
        """Pass on the answer of the worker that holds the lease in the path; `None`: this worker has to answer."""
        holder = None if self.workers is None else self.workers.find_holder(request.match_info["name"])
        if self.workers is None or holder is None:
            return None
        try:
            answer = await self.workers.peers.request(holder, "GET", request.path)
        except (aiohttp.ClientError, OSError):
            return web.Response(status=503)
        try:
            if answer.status != 200:
                return web.Response(status=204 if answer.status == 204 else 503)
            return await stream(request, _pass_on(answer))
        finally:
            answer.close()


async def _read_all(body: Body) -> AsyncGenerator[bytes]:
    offset = 0
    while data := await body.read(offset, PIECE_BYTES):
        offset += len(data)
        yield data


async def _pass_on(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Yield the body of an answer. Raises: OriginError: It broke off."""
    try:
        async for data in answer.content.iter_any():
            yield data
    except (aiohttp.ClientError, TimeoutError):
        raise OriginError("the image broke off on its way from another worker") from None
