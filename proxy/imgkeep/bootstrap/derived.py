"""Builds what makes derived pictures. No process starts before the first one is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.bootstrap.gauges import watch_derive_processes
from imgkeep.derived.picture_sharing import PictureSharing
from imgkeep.derived.processes import DeriveProcesses
from imgkeep.observability.derive_metrics import DeriveMetrics

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from imgkeep.bootstrap.cluster import ClusterParts
    from imgkeep.config import Config
    from imgkeep.derived.picture_cache import PictureCache
    from imgkeep.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class DerivedServices:
    """What makes derived pictures, and finds facts of images."""

    processes: DeriveProcesses
    sharing: PictureSharing


def open_derived(
    config: Config, metrics: Metrics, stack: AsyncExitStack, cache: PictureCache, parts: ClusterParts
) -> DerivedServices:
    """Return the services, which end with `stack`."""
    processes = DeriveProcesses(
        config.derive,
        os.environ,  # noqa: TID251 - from which its processes get what an interpreter needs, and no more
        DeriveMetrics(metrics),
        workers=config.server.workers,
        verbose=config.log.level == "debug",
    )
    stack.push_async_callback(processes.aclose)
    watch_derive_processes(metrics, processes)
    fetch_from_node = None if parts.node_peers is None else parts.node_peers.fetch_picture
    return DerivedServices(processes, PictureSharing(cache, parts.cluster, fetch_from_node))
