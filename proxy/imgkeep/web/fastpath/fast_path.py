"""
State that all fast-path connections of a server share: response cache, shared responses, handlers, response writer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.web.fastpath.response_coalescing import SharedResponses

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.web.access_log import AccessLog
    from imgkeep.web.fastpath.response_cache import ResponseCache
    from imgkeep.web.fastpath.response_writer import ResponseWriter
    from imgkeep.web.images import ImageHandlers


@dataclass(slots=True)
class FastPath:
    """
    The fast path of a server.

    Attributes:
        own_hosts: Names under which this machine calls the server; empty: other machines can reach it too.
        timer: Monotonic seconds.
        enabled: `False` from the moment when the process drains: aiohttp answers the last requests of each connection.
    """

    handlers: ImageHandlers
    access_log: AccessLog
    response_cache: ResponseCache
    response_writer: ResponseWriter
    own_hosts: frozenset[str]
    timer: Callable[[], float]
    shared_responses: SharedResponses = field(default_factory=SharedResponses)
    enabled: bool = True


FAST_PATH: Final = web.AppKey("fast_path", FastPath)
"""Absent from an application that has no fast path."""
