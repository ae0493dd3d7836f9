"""The storage of a command that only reads."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgkeep.bootstrap.preflight import require_database_file
from imgkeep.bootstrap.storage import open_storage
from imgkeep.clock import read_clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.bootstrap.storage import Storage
    from imgkeep.config import Config


@asynccontextmanager
async def open_to_read(config: Config) -> AsyncGenerator[Storage]:
    """Open the configured storage without creating any of it, and warn if the image index is not complete."""
    await asyncio.to_thread(require_database_file, config)
    async with open_storage(config, clock=read_clock, reading=True) as storage:
        if not storage.database.image_index.complete:
            await storage.database.check()  # a database that is away has another remedy
            sys.stderr.write("imgkeep: the image index is not complete; `imgkeep reindex` fills it from the records\n")
        yield storage
