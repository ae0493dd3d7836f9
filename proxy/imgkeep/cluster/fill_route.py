"""The routes `GET /fills/<name>` and its end, which the peer APIs for workers and for nodes have in common."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from imgkeep.cluster.progress import write_failure, write_fill
from imgkeep.core.errors import ImgkeepError
from imgkeep.images.peer_fill import FillFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.images.service import ImageService

FILL_ROUTE: Final = r"/fills/{name:(?:try\.)?[0-9a-f]{64}}"
END_ROUTE: Final = r"/fills/{name:(?:(?:try|picture)\.)?[0-9a-f]{64}}/end"
"""Of fills and of derivations (`derived/picture_sharing.py`)."""
STALL_TIMEOUT_S: Final = 60
"""Timeout for a peer to read one piece: it holds a draft meanwhile."""


async def follow_fill(request: web.Request, images: ImageService, *, share_file: bool) -> web.StreamResponse:
    """Answer `GET /fills/<name>` with a fill of this process."""
    joined = await images.join_for_peer(request.match_info["name"])
    if joined is None:
        return web.Response(status=204)
    if isinstance(joined, FillFailure):
        return web.Response(body=write_failure(joined))
    body, head = joined
    try:
        return await stream(request, write_fill(body, head, share_file=share_file))
    finally:
        await body.aclose()


async def stream(request: web.Request, pieces: AsyncGenerator[bytes], size: int | None = None) -> web.StreamResponse:
    """
    Send a body of `size` bytes, or in chunks. One that breaks off has no last byte or chunk (RFC 9112, 7.1).
    """
    response = web.StreamResponse()
    response.content_length = size
    try:
        async with aclosing(pieces):
            await response.prepare(request)
            async for piece in pieces:
                async with asyncio.timeout(STALL_TIMEOUT_S):
                    await response.write(piece)
            await response.write_eof()
    except Exception as error:
        response.force_close()
        transport = cast("asyncio.WriteTransport | None", request.transport)
        if transport is not None:
            transport.abort()
        if not isinstance(error, ImgkeepError | ConnectionError | TimeoutError):
            raise
    return response
