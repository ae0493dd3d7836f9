"""Makes the client of a bucket for the URL of its store; imports only the library of that service."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from imgkeep.config import ConfigError
from imgkeep.core.store_url import AzureContainer, CloudinaryFolder, GcsBucket, S3Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.store_url import RemotePlace
    from imgkeep.storage.bucket.client import BucketClient


def make_client(
    place: RemotePlace, *, timeout_s: float, observe: Callable[[str, str, float], None] = lambda *_: None
) -> BucketClient:
    """
    Return the client of a bucket, not yet open.

    Args:
        place: The bucket.
        timeout_s: Timeout for a call that makes no progress.
        observe: Receives operation, outcome and seconds of each call.

    Raises:
        ConfigError: The library of the service is not installed.
    """
    # Each library is slow to import, and the others need not be installed.
    match place:
        case S3Bucket():
            from imgkeep.storage.s3 import S3Client  # noqa: PLC0415

            return S3Client(place, timeout_s=timeout_s, observe=observe)
        case GcsBucket():
            try:
                from imgkeep.storage.gcs import GcsClient  # noqa: PLC0415
            except ModuleNotFoundError as error:
                raise _missing("gs://", "gcs", error) from None
            return GcsClient(place, timeout_s=timeout_s, observe=observe)
        case AzureContainer():
            from imgkeep.storage.azure import AzureClient  # noqa: PLC0415

            return AzureClient(place, timeout_s=timeout_s, observe=observe)
        case CloudinaryFolder():
            from imgkeep.storage.cloudinary import CloudinaryClient  # noqa: PLC0415

            return CloudinaryClient(place, timeout_s=timeout_s, observe=observe)
        case _:
            assert_never(place)


def _missing(scheme: str, extra: str, error: ModuleNotFoundError) -> ConfigError:
    """Return what to say where a module of another project is not installed."""
    if (error.name or "imgkeep").partition(".")[0] == "imgkeep":
        raise error
    return ConfigError(f"store.url: {scheme} needs a library that is not installed: pip install 'imgkeep[{extra}]'")
