"""What the connections of a server share: caches, limits, and the handlers behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.web.aiohttp_adapter import STALL_TIMEOUT_S
from imgkeep.web.parse_budget import ParseBudget

if TYPE_CHECKING:
    from collections.abc import Callable
    from imgkeep.web.access_log import AccessLog
    from imgkeep.web.connection_limit import ConnectionLimit
    from imgkeep.web.error_responses import Placeholder
    from imgkeep.web.fastpath.coalescing import SharedResponse
    from imgkeep.web.fastpath.response_cache import ResponseCache
    from imgkeep.web.images import ImageHandlers


@dataclass(frozen=True, slots=True)
class FastPath:
    """
    What the connections of a server share.

    Attributes:
        own_hosts: Names under which this machine calls the server; empty: other machines can reach it too.
        connection_limit: `None`: clients may hold any number of connections.
        placeholder: The image of `delivery.placeholder`; `None`: not configured.
        timer: Monotonic seconds.
        stall_timeout_s: Timeout for a client that takes no bytes.
        shared_responses: Responses on their way, by request target.
    """

    handlers: ImageHandlers
    access_log: AccessLog
    response_cache: ResponseCache
    own_hosts: frozenset[str]
    connection_limit: ConnectionLimit | None
    placeholder: Placeholder | None
    timer: Callable[[], float]
    stall_timeout_s: float = STALL_TIMEOUT_S
    shared_responses: dict[bytes, SharedResponse] = field(default_factory=dict)
    parse_budget: ParseBudget = field(default_factory=ParseBudget)


FAST_PATH: Final = web.AppKey("fast_path", FastPath)
