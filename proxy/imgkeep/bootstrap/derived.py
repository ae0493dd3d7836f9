"""Builds what makes derived pictures. No process starts before the first one is asked for."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.bootstrap.gauges import watch_derive_processes, watch_facts
from imgkeep.bootstrap.picture_store import open_picture_store
from imgkeep.bootstrap.platform import SYSTEM
from imgkeep.derived.facts import FactsFinder, FactsLimits
from imgkeep.derived.picture_sharing import PictureSharing
from imgkeep.derived.pictures import DerivedPictures
from imgkeep.derived.processes import DeriveProcesses
from imgkeep.observability.derive_metrics import DeriveMetrics
from imgkeep.observability.metrics import Metrics

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from imgkeep.bootstrap.cluster import ClusterParts
    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.storage import Storage
    from imgkeep.config import Config
    from imgkeep.derived.messages import Ready
    from imgkeep.derived.picture_store import PictureStore
    from imgkeep.images.blocked_digests import BlockedDigests
    from imgkeep.replication.public_access import PublicAccess


@dataclass(frozen=True, slots=True)
class DerivedServices:
    """The services that make derived pictures and find facts of images."""

    processes: DeriveProcesses
    sharing: PictureSharing
    store: PictureStore
    public_access: PublicAccess | None
    """Whether the public URLs of pictures in the store work; `None`: no client is sent there."""
    pictures: DerivedPictures
    facts: FactsFinder


def open_derived(  # noqa: PLR0913, PLR0917 - what they work with, in one place
    config: Config,
    platform: Platform,
    storage: Storage,
    blocked: BlockedDigests,
    parts: ClusterParts,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> DerivedServices:
    """Return the services, which end with `stack`."""
    settings = config.derive
    processes = _make_processes(config, platform, metrics)
    stack.push_async_callback(processes.aclose)
    watch_derive_processes(metrics, processes)
    fetch_from_node = None if parts.node_peers is None else parts.node_peers.fetch_picture
    sharing = PictureSharing(storage.picture_cache, parts.cluster, fetch_from_node)
    store, public_access = open_picture_store(config, platform, storage, metrics, stack)
    pictures = DerivedPictures(
        processes=processes,
        cache=storage.picture_cache,
        picture_store=store,
        sharing=sharing,
        originals=storage.store,
        spool=storage.spool,
        settings=config.derive,
        blocked=blocked,
        timer=platform.timer,
        sleep=platform.sleep,
        draw=random.random,
    )
    stack.push_async_callback(pictures.aclose)
    facts = FactsFinder(
        store=storage.store,
        spool=storage.spool,
        table=storage.database.picture_facts,
        run_job=processes.run,
        limits=FactsLimits(settings.pixels_max, settings.frames_max, settings.svg, settings.timeout_s),
        blocked=blocked,
        timer=platform.timer,
        in_idle_time=settings.facts,
        in_records=storage.remote is None,
    )
    stack.push_async_callback(facts.aclose)
    watch_facts(metrics, facts)
    return DerivedServices(processes, sharing, store, public_access, pictures, facts)


async def check_derive_process(config: Config, platform: Platform = SYSTEM) -> Ready:
    """
    Start a derive process, end it, and return what it can do.

    Raises:
        Busy: It does not start.
        NotSupported: The extra is not installed, or its library cannot be used.
    """
    processes = _make_processes(config, platform, Metrics())
    try:
        return await processes.check()
    finally:
        await processes.aclose()


def _make_processes(config: Config, platform: Platform, metrics: Metrics) -> DeriveProcesses:
    return DeriveProcesses(
        config.derive,
        os.environ,  # noqa: TID251 - from which its processes get what an interpreter needs, and no more
        DeriveMetrics(metrics),
        workers=config.server.workers,
        command=platform.derive_command,
        verbose=config.log.level == "debug",
    )
