"""The migrations of the database's tables, one module a version."""
