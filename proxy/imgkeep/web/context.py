"""What handlers work with, under one key of the application, and what they note about a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from imgkeep.core.errors import StorageError
from imgkeep.web.parse_budget import ParseBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.clock import Clock
    from imgkeep.cluster.peers import Peers
    from imgkeep.core.errors import ImgkeepError
    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.database import ImageIndex
    from imgkeep.health import Health
    from imgkeep.images.inspect import Inspector
    from imgkeep.images.miss_limit import MissLimiter
    from imgkeep.images.recent_failures import RecentFailures
    from imgkeep.images.refetch import Refetcher
    from imgkeep.images.removal import Remover
    from imgkeep.images.service import ImageService
    from imgkeep.images.upload import Saver
    from imgkeep.jobs.runner import JobRunner
    from imgkeep.observability.metrics import Metrics
    from imgkeep.page_rewriting import LinkSelection, RewriteService
    from imgkeep.web.auth import Auth
    from imgkeep.web.connection_limit import ConnectionLimit
    from imgkeep.web.error_responses import Placeholder
    from imgkeep.web.fastpath.coalescing import SharedResponse
    from imgkeep.web.fastpath.response_cache import ResponseCache
    from imgkeep.web.home_page import HomePage
    from imgkeep.web.request_body import Bodies


SERVER_NAME: Final = "imgkeep"
"""Who answers, and not by which versions of what."""

YEAR_S: Final = 31_536_000

EXPOSED_HEADERS: Final = "Cache-Status, Content-Location, Content-Range, ETag, Retry-After"
"""The header fields that scripts of other sites may read (WHATWG Fetch, `Access-Control-Expose-Headers`)."""

DETAIL_CHARS_MAX: Final = 300
"""Maximum length of a detail in a record: one that quotes a client fills neither a log nor a field between workers."""

STALL_TIMEOUT_S: Final = 60
"""A client that takes no piece for this long has gone (nginx's `send_timeout`)."""


@dataclass(frozen=True, slots=True)
class Site:
    """The services and settings of the HTTP edge."""

    image_service: ImageService
    health: Health
    meter: Metrics
    public: Source | None
    """`server.public_url`, read."""
    auth: Auth
    prepared: ResponseCache
    inspector: Inspector
    saver: Saver
    remover: Remover
    refetcher: Refetcher
    jobs: JobRunner
    image_index: ImageIndex
    failures: RecentFailures
    bodies: Bodies
    link_selection: LinkSelection
    rewrite_service: RewriteService
    redirect_status: int
    access_log: bool
    clock: Clock
    timer: Callable[[], float]
    stall_timeout_s: float = STALL_TIMEOUT_S
    shared_responses: dict[bytes, SharedResponse] = field(default_factory=dict)
    """By request target: the answers that are on their way."""
    turns: ParseBudget = field(default_factory=ParseBudget)
    placeholder: Placeholder | None = None
    """The picture that failed requests for images are answered with; `None`: `delivery.placeholder` is empty."""
    welcome: HomePage | None = None
    """What `/` tells; `None`: there is no such page (`server.welcome`)."""
    peers: Peers | None = None
    """`None`: there is one worker."""
    misses: MissLimiter | None = None
    """Who may look for what is not stored; `None`: a look costs nothing."""
    connections: ConnectionLimit | None = None
    """`None`: clients may hold as many connections as they like."""

    def own_url(self, object_name: str) -> str:
        """Return where we serve an object; only its path where no public URL is configured (RFC 9110, 8.7)."""
        base = "" if self.public is None else self.public.url.rstrip("/")
        return f"{base}/images/{object_name}"


@dataclass(slots=True)
class RequestLog:
    """What the request's record will say."""

    key: str | None = None
    outcome: str = "none"
    code: str | None = None
    sent: int = 0
    host: str | None = None
    """Of the link, told with a failure."""
    provider: str | None = None
    detail: str | None = None
    """Of a failure, for people."""
    permitted_until: int | None = None
    """When the permission to see the answer ends, in epoch seconds."""

    def set_source(self, source: Source, info: SourceInfo) -> None:
        """Note which link the request is about, as far as a record may tell."""
        self.key, self.host, self.provider = info.key, source.host, info.provider

    def fail(self, code: str, detail: str) -> None:
        """Note a failure."""
        self.code, self.detail = code, detail[:DETAIL_CHARS_MAX]

    def fail_with(self, error: ImgkeepError) -> None:
        """Note a typed failure, in full where clients are told less."""
        self.fail(error.code, error.in_full if isinstance(error, StorageError) else str(error))


class Admission(msgspec.Struct, frozen=True):
    """
    What the process that holds the client's connection has judged of a request to the API (`admission.py`).

    Attributes:
        base: What stands before our own paths in the answer: `Auth.base_url`.
        body_bytes: The declared size of the body, which the parser there keeps to; `None`: it comes in chunks.
    """

    base: str
    body_bytes: int | None = None


SITE: Final = web.AppKey("site", Site)
REQUEST_LOG: Final = web.RequestKey("request_log", RequestLog)
IS_IMAGE: Final = web.RequestKey("is_image", bool)
"""Of requests that a handler of images answers: a failure may be a picture."""
ADMISSION: Final = web.RequestKey("admitted", Admission)
"""Of requests to the API. A handler that finds none fails, so that a route that nothing has judged stays shut."""
