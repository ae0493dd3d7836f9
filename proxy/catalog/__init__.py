"""
The catalog: a fast, queryable view of the records in SQL. Losing it loses nothing; the records are the truth.
"""

from proxy.catalog.database import insist_on_driver
from proxy.catalog.jobs import SqlJobs
from proxy.catalog.schema import CatalogTooNew
from proxy.catalog.sql import SqlCatalog

__all__ = ["CatalogTooNew", "SqlCatalog", "SqlJobs", "insist_on_driver"]
