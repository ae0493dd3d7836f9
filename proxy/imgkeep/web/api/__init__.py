"""Handlers of `/api`: one module a resource."""
