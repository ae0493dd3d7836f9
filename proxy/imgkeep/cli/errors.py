"""The error of a command that asks a server; apart from the client, whose HTTP library takes long to import."""

from __future__ import annotations

from imgkeep.core.errors import StorageError


class ServerError(StorageError):
    """The server that was named does not do what it was asked for."""
