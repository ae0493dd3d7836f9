"""
The database: a fast, queryable view of the records in SQL. Losing it loses nothing; the records are the truth.
"""

from imgkeep.database.durable_jobs import DurableJobs
from imgkeep.database.engine import require_driver
from imgkeep.database.image_index import ImageIndex
from imgkeep.database.schema import IncompatibleDatabase

__all__ = ["DurableJobs", "ImageIndex", "IncompatibleDatabase", "require_driver"]
