"""Azure Blob Storage: the `client` of a container, over its `connection`, with its `uploads` and `shared_access` links."""

from imgkeep.storage.azure.client import AzureClient

__all__ = ["AzureClient"]
