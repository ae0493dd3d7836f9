"""
Builds the context of the HTTP handlers: authentication, limits, caches, metrics and pages, on top of the services.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from imgkeep.bootstrap.background import BackgroundTasks
from imgkeep.bootstrap.cluster import open_cluster
from imgkeep.bootstrap.replication import make_outbox_worker
from imgkeep.bootstrap.services import make_link_selection, open_services
from imgkeep.config import data_folder
from imgkeep.core.signing import Signatures
from imgkeep.images.lookup_rate_limit import MissLimiter
from imgkeep.observability.metrics import Metrics
from imgkeep.page_rewriting import RewriteService
from imgkeep.storage.local.machine_token import TokenUnusableError, make_token
from imgkeep.web.access_log import AccessLog
from imgkeep.web.api.api_services import ApiContext, Rewriting
from imgkeep.web.app import AppContext
from imgkeep.web.auth import Auth, Tokens
from imgkeep.web.connection import ConnectionContext
from imgkeep.web.connection_limit import ConnectionLimit
from imgkeep.web.error_presentation import read_placeholder
from imgkeep.web.fastpath.fast_path import FastPath
from imgkeep.web.fastpath.response_cache import BYTES_MAX, ResponseCache
from imgkeep.web.fastpath.response_writer import ResponseWriter
from imgkeep.web.home_page import HomePage
from imgkeep.web.images import ImageHandlers
from imgkeep.web.metrics import MetricsPage
from imgkeep.web.picture_requests import PictureRequests
from imgkeep.web.responses import ImageResponses
from imgkeep.web.static_files import make_module

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from imgkeep.bootstrap.cluster import ClusterParts
    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.services import Services
    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.images.failure_history import RecentFailure
    from imgkeep.images.limit_share import LimitShare
    from imgkeep.web.error_presentation import Placeholder

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_context(
    config: Config, platform: Platform, worker: WorkerInfo | None, *, has_fast_path: bool = True
) -> AsyncGenerator[tuple[Services, BackgroundTasks, AppContext]]:
    """
    Open the services, run their background tasks, and yield both with the context of the handlers.

    Args:
        config: The configuration.
        platform: Clocks and sockets.
        worker: One of several workers; `None`: there is one process.
        has_fast_path: Whether plain requests for images bypass aiohttp.
    """
    placeholder = await asyncio.to_thread(read_placeholder, config.delivery.placeholder)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(open_cluster(config, platform, worker, metrics.peer_asked))
        share = BYTES_MAX // (1 if worker is None else worker.workers)
        cache = ResponseCache(share, parts.trust) if has_fast_path else None
        services = await stack.enter_async_context(open_services(config, platform, parts, metrics, cache))
        background = BackgroundTasks(services, platform, make_outbox_worker(services, platform), parts)
        await stack.enter_async_context(background.running())
        _watch_response_cache(metrics, cache)
        rewrite_service = RewriteService(metrics.rewritten)
        stack.callback(rewrite_service.close)
        auth = _make_auth(config, platform, await _open_token(config))
        access_log = AccessLog(metrics, auth, platform.timer, enabled=config.log.access)
        responses = _make_responses(config, platform, services, auth, cache)
        miss_limiter = _make_miss_limiter(config, platform, services, parts.limit_share)
        images = _make_images(config, services, auth, responses, miss_limiter)
        yield (
            services,
            background,
            AppContext(
                auth=auth,
                access_log=access_log,
                images=images,
                api=_make_api(config, services, rewrite_service, parts),
                health=services.health,
                metrics=MetricsPage(metrics, parts.peers),
                module=make_module(services.inspector.policy, auth.signature),
                connections=ConnectionContext(
                    access_log,
                    ConnectionLimit(config.limits.connections, auth.trusted_proxies, services.metrics.refused),
                ),
                fast_path=_make_fast_path(platform, images, access_log, placeholder, cache),
                placeholder=placeholder,
                home_page=HomePage(_has_external_images(config)) if config.server.welcome else None,
            ),
        )


def _watch_response_cache(metrics: Metrics, cache: ResponseCache | None) -> None:
    if cache is None:
        return
    metrics.watch("response_cache_entries", "Request targets with a cached response", lambda: len(cache))
    metrics.watch("response_cache_bytes", "Memory of cached responses", lambda: cache.bytes)


def _make_fast_path(
    platform: Platform,
    images: ImageHandlers,
    access_log: AccessLog,
    placeholder: Placeholder | None,
    cache: ResponseCache | None,
) -> FastPath | None:
    if cache is None:
        return None
    return FastPath(
        handlers=images,
        access_log=access_log,
        response_cache=cache,
        response_writer=ResponseWriter(placeholder, platform.clock, platform.timer),
        own_hosts=images.auth.own_hosts,
        timer=platform.timer,
    )


def _make_auth(config: Config, platform: Platform, local_token: str | None) -> Auth:
    return Auth(
        signature=config.security.signature,
        signatures=Signatures(config.security.signing_keys),
        tokens=Tokens.of(config.security.api_tokens or ((local_token,) if local_token else ())),
        local_token=local_token,
        own_hosts=_own_hosts(config),
        trusted_proxies=tuple(ip_network(text) for text in config.server.trusted_proxies),
        forwarded_header=config.server.forwarded_header.lower(),
        public_base_url=config.server.public_url.rstrip("/"),
        clock=platform.clock,
    )


def _make_responses(
    config: Config, platform: Platform, services: Services, auth: Auth, cache: ResponseCache | None
) -> ImageResponses:
    return ImageResponses(
        services.image_service,
        cache,
        public_base_url=auth.public_base_url,
        redirect_status=config.delivery.redirect_status,
        clock=platform.clock,
        timer=platform.timer,
    )


def _make_images(
    config: Config, services: Services, auth: Auth, responses: ImageResponses, miss_limiter: MissLimiter | None
) -> ImageHandlers:
    derived = services.derived
    pictures = PictureRequests(services.image_service, derived.pictures, derived.store, config.derive_policy(), auth)
    return ImageHandlers(services.image_service, auth, responses, pictures, services.inspector.public, miss_limiter)


def _make_api(config: Config, services: Services, rewrite_service: RewriteService, parts: ClusterParts) -> ApiContext:
    async def list_failures() -> Sequence[Sequence[RecentFailure]]:
        own = services.failures.list()
        return [own] if parts.all_peers is None else [own, *await parts.all_peers.failures()]

    return ApiContext(
        image_service=services.image_service,
        image_index=services.storage.database.image_index,
        inspector=services.inspector,
        saver=services.saver,
        remover=services.remover,
        refetcher=services.refetcher,
        facts=services.derived.facts,
        jobs=services.jobs,
        list_failures=list_failures,
        rewriting=Rewriting(rewrite_service, make_link_selection(config, services.inspector, services.storage)),
        health=services.health,
        relay_peers=parts.relay_peers,
    )


async def _open_token(config: Config) -> str | None:
    """Return the token of this machine; `None`: `security.api_tokens` replace it, or it cannot be made."""
    if config.security.api_tokens:
        return None
    try:
        return await asyncio.to_thread(make_token, data_folder(config))
    except TokenUnusableError as error:
        log.warning("the API is closed", extra={"reason": str(error), "setting": "security.api_tokens"})
        return None


def _make_miss_limiter(config: Config, platform: Platform, services: Services, share: LimitShare) -> MissLimiter | None:
    """Return the limiter where lookups may be requests to a bucket; on a disk they cost next to nothing."""
    if services.storage.remote is None or not config.limits.misses_per_minute:
        return None
    limit = config.limits.misses_per_minute
    return MissLimiter(limit, timer=platform.timer, refused=services.metrics.refused, share=share)


def _has_external_images(config: Config) -> bool:
    """Tell whether a page of this server has to load images from other servers."""
    delivery = config.delivery
    return delivery.mode != "serve" or bool(delivery.base_url) or config.sources.permanent == "redirect"


def _own_hosts(config: Config) -> frozenset[str]:
    """Return the names under which this machine calls the server; none if other machines can reach it too."""
    return frozenset() if config.server.is_open else frozenset({*map(str.lower, config.server.hosts), *LOOPBACK_NAMES})
