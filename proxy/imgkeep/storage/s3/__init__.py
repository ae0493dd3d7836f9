"""Amazon S3, and what speaks like it: the bucket (`client`), bodies (`body`), `uploads`, the store (`store`)."""

from imgkeep.storage.s3.store import S3Store

__all__ = ["S3Store"]
