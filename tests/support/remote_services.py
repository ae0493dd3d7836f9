"""Every remote service of `core.store_url.RemotePlace`, as the tests of all remote stores open it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgkeep.core.store_url import AzureContainer, CloudinaryFolder, GcsBucket, S3Bucket
from tests.support.azure import backends as azure
from tests.support.cloudinary import backends as cloudinary
from tests.support.gcs import backends as gcs
from tests.support.s3 import backends as s3
from tests.support.s3.servers import NAMES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.support.bucket_backends import BucketBackend, Refusal

REFUSALS = ("throttled", "overloaded", "internal", "no rights", "missing bucket", "clock skew", "expired token")
"""Refusals that each service has in words of its own, or lacks for a reason."""


@dataclass(frozen=True)
class RemoteService:
    """
    A service.

    Attributes:
        place: Its class in `core.store_url`.
        server: Name of the server that stands for it in the matrix of faults.
        open: Opens a store on it, of the server's name, the request of a fixture, a folder, and `timeout_s`.
        refusals: How it refuses, by name.
        without: Names of `REFUSALS` that it lacks, with the reason.
    """

    place: type
    server: str
    open: Callable[..., AsyncIterator[BucketBackend]]
    refusals: Mapping[str, Refusal]
    without: Mapping[str, str] = field(default_factory=dict)


SERVICES = {
    "s3": RemoteService(S3Bucket, "rclone", s3.open_s3, s3.REFUSALS),
    "azure": RemoteService(AzureContainer, azure.SERVER, azure.open_azure, azure.REFUSALS),
    "gcs": RemoteService(GcsBucket, gcs.STRICT, gcs.open_gcs, gcs.REFUSALS, gcs.WITHOUT),
    "cloudinary": RemoteService(
        CloudinaryFolder, cloudinary.SERVER, cloudinary.open_cloudinary, cloudinary.REFUSALS, cloudinary.WITHOUT
    ),
}

SERVERS: Mapping[str, Callable[..., AsyncIterator[BucketBackend]]] = {
    **dict.fromkeys(NAMES, s3.open_s3),
    **dict.fromkeys((gcs.SERVER, gcs.STRICT), gcs.open_gcs),
    azure.SERVER: azure.open_azure,
    cloudinary.SERVER: cloudinary.open_cloudinary,
}
"""Every server on which the contract of stores is tried, and what opens a store on it."""
