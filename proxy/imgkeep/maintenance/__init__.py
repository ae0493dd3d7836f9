"""Maintenance of a whole store: verify, reindex, migrate."""
