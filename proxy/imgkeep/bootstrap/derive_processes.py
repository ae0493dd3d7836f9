"""Builds the derive processes of a server or of a command. None of them starts before the first picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgkeep.bootstrap.gauges import watch_derive_processes
from imgkeep.derived.processes import DeriveProcesses
from imgkeep.observability.derive_metrics import DeriveMetrics

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from imgkeep.config import Config
    from imgkeep.observability.metrics import Metrics


def open_derive_processes(config: Config, metrics: Metrics, stack: AsyncExitStack) -> DeriveProcesses:
    """Return the derive processes, which end with `stack`."""
    processes = DeriveProcesses(
        config.derive,
        os.environ,  # noqa: TID251 - from which its processes get what an interpreter needs, and no more
        DeriveMetrics(metrics),
        workers=config.server.workers,
        verbose=config.log.level == "debug",
    )
    stack.push_async_callback(processes.aclose)
    watch_derive_processes(metrics, processes)
    return processes
