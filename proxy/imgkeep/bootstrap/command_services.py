"""Opens the services for a command: it is no member of a cluster, and tells the live nodes of one what it changes."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgkeep.bootstrap.cluster import ALONE, ClusterParts
from imgkeep.bootstrap.platform import SYSTEM
from imgkeep.bootstrap.services import open_services

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.bootstrap.services import Services
    from imgkeep.config import Config


@asynccontextmanager
async def open_command_services(config: Config) -> AsyncGenerator[Services]:
    """Open storage and services. Raises as `open_services`."""
    async with _open_parts(config) as parts, open_services(config, parts=parts) as services:
        yield services


@asynccontextmanager
async def _open_parts(config: Config) -> AsyncGenerator[ClusterParts]:
    if not config.database.is_shared:
        yield ALONE
        return
    # One node does without these.
    from imgkeep.bootstrap.nodes import make_session  # noqa: PLC0415
    from imgkeep.cluster.nodes.change_writer import ChangeWriter  # noqa: PLC0415

    session = make_session(config)
    writer = ChangeWriter(session, f"command/{secrets.token_hex(8)}", timer=SYSTEM.timer, sleep=SYSTEM.sleep)
    task = asyncio.create_task(session.run())
    try:
        await session.attempted.wait()
        yield ClusterParts(command_writer=writer)
    finally:
        await writer.aclose()
        task.cancel()
        await asyncio.wait([task])
