"""Amazon S3 and compatible services: the `client` of a bucket, over its `connection`, with its `uploads`."""

from imgkeep.storage.s3.client import S3Client

__all__ = ["S3Client"]
