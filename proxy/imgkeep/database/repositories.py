"""The composition of one engine and its five repositories."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from imgkeep.database.blocked_digests import RemovalIndex
from imgkeep.database.durable_jobs import DurableJobs
from imgkeep.database.engine import DatabaseEngine
from imgkeep.database.image_index import BATCH_DELAY_S, ImageIndex
from imgkeep.database.outbox import Outbox
from imgkeep.database.picture_facts import PictureFactsTable

if TYPE_CHECKING:
    from imgkeep.clock import Clock
    from imgkeep.database.session import DatabaseSession

log = logging.getLogger(__name__)


class Database:
    """
    One database. Only `jobs` has rows that are stored nowhere else.

    Args:
        node: The name of this node of a cluster; empty: it is the only one.
        member: The name of this process as a member of the cluster; empty: it is none.
        session: The session of a PostgreSQL, for lookups; `None`: the engine does them.
    """

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self,
        url: str,
        clock: Clock,
        *,
        node: str = "",
        member: str = "",
        session: DatabaseSession | None = None,
        batch_delay_s: float = BATCH_DELAY_S,
        read_only: bool = False,
    ) -> None:
        self.engine = DatabaseEngine(url, clock, read_only=read_only)
        lookup = None
        if session is not None:
            from imgkeep.database.record_lookup import RecordLookup  # noqa: PLC0415 - a dialect that SQLite does without

            lookup = RecordLookup(session, node)
        self.image_index = ImageIndex(self.engine, batch_delay_s=batch_delay_s, node=node, lookup=lookup)
        index = self.image_index
        self.outbox = Outbox(self.engine, index.flush, unwritten=lambda: index.unwritten, node=node)
        self.picture_facts = PictureFactsTable(self.engine)
        self.removals = RemovalIndex(self.engine)
        self.jobs = DurableJobs(self.engine, self.image_index, member=member)

    async def open(self) -> None:
        """
        Connect, and make the tables.

        Raises:
            IncompatibleDatabase: Another version wrote the database.
            StorageError: The database cannot be reached; every later call tries again.
        """
        await self.engine.open()

    async def check(self) -> int:
        """
        Check that the database answers, and write the rows that wait for it; return 0: its room is not known.

        Raises:
            StorageError: The database does not answer.
        """
        await self.engine.check()
        self.image_index.start_flush()
        return 0

    async def aclose(self) -> None:
        await self.image_index.flush()
        if images := len(self.image_index.unwritten):
            log.warning("image index lacks images; `imgkeep reindex` adds them", extra={"images": images})
        await self.engine.aclose()
