"""The error of a command with `--server`; apart from the client, because aiohttp is slow to import."""

from __future__ import annotations

from imgkeep.core.errors import StorageError


class ServerError(StorageError):
    """The failure of a request to the named server."""
