"""
The SQL database: one engine, and four repositories that keep tables in it.

| repository | what it holds | when it is lost |
|---|---|---|
| `ImageIndex` | a view of the records in the store | `reindex` fills it again |
| `Outbox` | the order in which the fallback's images are uploaded | the outbox worker enlists the fallback again |
| `RemovalIndex` | a copy of the store's blocked digests | the next refresh reads them from the store |
| `DurableJobs` | jobs and their links | lost: they are stored nowhere else |
"""

from imgkeep.database.blocked_digests import RemovalIndex
from imgkeep.database.durable_jobs import DurableJobs
from imgkeep.database.engine import DatabaseEngine, require_driver
from imgkeep.database.image_index import ImageIndex
from imgkeep.database.outbox import Outbox
from imgkeep.database.repositories import Database
from imgkeep.database.schema_upgrade import IncompatibleDatabase

__all__ = [
    "Database",
    "DatabaseEngine",
    "DurableJobs",
    "ImageIndex",
    "IncompatibleDatabase",
    "Outbox",
    "RemovalIndex",
    "require_driver",
]
