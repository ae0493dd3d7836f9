"""Amazon S3 and compatible services: the bucket (`client`), bodies (`body`), `uploads`, the store (`store`)."""

from imgkeep.storage.s3.store import S3Store

__all__ = ["S3Store"]
