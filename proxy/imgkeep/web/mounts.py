"""
Mounts: paths of images that the operator names, for old file names and for URLs of other image servers.

URLs of other image servers go the way of `/img`, with the same policy, limits and caches. A path under their mount that
is none of their URLs is 404: a mount may be `/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.core.derived.compatibility.imageproxy import read_imageproxy
from imgkeep.core.derived.compatibility.nextjs import read_nextjs
from imgkeep.core.derived.compatibility.thumbor import read_thumbor
from imgkeep.core.errors import SignatureExpired

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.derived.compatibility.foreign_request import ForeignRequest
    from imgkeep.web.images import Handler, ImageHandlers
    from imgkeep.web.request_response import HttpResponse, ImageRequest

    Read = Callable[[str, str | None], ForeignRequest | None]

_AUTHORITY: Final = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)
"""The beginning of a target in absolute form (RFC 9112, 3.2.2)."""


@dataclass(frozen=True, slots=True)
class Mount:
    """
    A mount.

    Attributes:
        route: The pattern of its paths.
        find_handler: Returns the handler of its requests.
    """

    route: str
    find_handler: Callable[[ImageHandlers], Handler]


def legacy_mount(mount: str) -> Mount:
    """Return the mount of images that were imported under their old names."""
    return Mount(f"/{mount}/{{name:.+}}", lambda handlers: partial(handlers.serve_legacy, mount=mount))


def foreign_mounts(
    *, imageproxy: str = "", imageproxy_key: str = "", thumbor: str = "", thumbor_key: str = "", nextjs: str = ""
) -> list[Mount]:
    """Return the mounts of other image servers, `/` last: other mounts come before it."""
    mounts = [
        (imageproxy, _mount_below(imageproxy, partial(read_imageproxy, key=imageproxy_key))),
        (thumbor, _mount_below(thumbor, partial(read_thumbor, key=thumbor_key))),
        (nextjs, Mount(nextjs, partial(_bind, _read_nextjs, nextjs))),
    ]
    return [mount for path, mount in sorted(mounts, key=lambda each: each[0] == "/") if path]


def _mount_below(path: str, read: Read) -> Mount:
    prefix = f"{path.rstrip('/')}/"
    return Mount(f"{prefix}{{name:.+}}", partial(_bind, read, prefix))


def _bind(read: Read, prefix: str, handlers: ImageHandlers) -> Handler:
    return partial(_serve, read, prefix, handlers)


def _read_nextjs(path: str, query: str | None) -> ForeignRequest | None:
    return None if path else read_nextjs(query)


async def _serve(read: Read, prefix: str, handlers: ImageHandlers, request: ImageRequest) -> HttpResponse:
    """Serve a URL of another image server; `read` gets what follows `prefix` in its path, and its query."""
    path, mark, query = _AUTHORITY.sub("", request.target, count=1).partition("?")
    # The route has matched the decoded path, and this is the one that came.
    found = read(path.removeprefix(prefix), query if mark else None) if path.startswith(prefix) else None
    if found is None:
        raise web.HTTPNotFound
    if found.ends is not None and found.ends <= handlers.auth.clock().timestamp():
        raise SignatureExpired("the URL has expired")
    request.request_log.permitted_until = found.ends
    return await handlers.serve_query(request, found.query())
