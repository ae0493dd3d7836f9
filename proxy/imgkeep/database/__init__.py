"""
The catalog: a fast, queryable view of the records in SQL. Losing it loses nothing; the records are the truth.
"""

from imgkeep.database.durable_jobs import SqlJobs
from imgkeep.database.engine import insist_on_driver
from imgkeep.database.image_index import SqlCatalog
from imgkeep.database.schema import CatalogTooNew

__all__ = ["CatalogTooNew", "SqlCatalog", "SqlJobs", "insist_on_driver"]
