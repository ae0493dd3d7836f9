"""Google Cloud Storage: the `client` of a bucket over its `connection`, with Google's `credentials`."""

from imgkeep.storage.gcs.client import GcsClient

__all__ = ["GcsClient"]
