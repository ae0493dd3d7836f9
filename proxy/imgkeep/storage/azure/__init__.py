"""Azure Blob Storage: the `client` of a container over its `connection`, `uploads`, and links with `shared_access`."""

from imgkeep.storage.azure.client import AzureClient

__all__ = ["AzureClient"]
