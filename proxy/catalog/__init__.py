"""
The catalog: a fast, queryable view of the records in SQL. Losing it loses nothing; the records are the truth.
"""

from proxy.catalog.jobs import SqlJobs
from proxy.catalog.schema import CatalogTooNew
from proxy.catalog.sql import SqlCatalog

__all__ = ["CatalogTooNew", "SqlCatalog", "SqlJobs"]
