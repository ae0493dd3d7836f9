"""Buckets of S3 servers as backends of the tests of all stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.s3 import S3Client
from tests.support.bucket_backends import TIMEOUT_S, BucketBackend, Refusal, opening
from tests.support.s3.misbehaving import s3_error
from tests.support.s3.programs import KINDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from tests.support.s3.servers import S3Server

REFUSALS = {
    "throttled": Refusal(s3_error(429, "TooManyRequests"), "TooManyRequests"),
    "overloaded": Refusal(s3_error(503, "SlowDown"), "SlowDown", remedy="limits requests"),
    "internal": Refusal(s3_error(500, "InternalError"), "InternalError", general=False),
    "wrong key": Refusal(s3_error(403, "InvalidAccessKeyId"), "InvalidAccessKeyId", remedy="AWS_ACCESS_KEY_ID"),
    "wrong key at VersityGW": Refusal(
        s3_error(404, "XAdminUserNotFound"), "XAdminUserNotFound", remedy="AWS_ACCESS_KEY_ID"
    ),
    "wrong secret": Refusal(
        s3_error(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch", remedy="AWS_SECRET_ACCESS_KEY"
    ),
    "no rights": Refusal(s3_error(403, "AccessDenied"), "AccessDenied", general=False, remedy="grant the right"),
    "missing bucket": Refusal(s3_error(404, "NoSuchBucket"), "NoSuchBucket", remedy="create the bucket"),
    "clock skew": Refusal(s3_error(403, "RequestTimeTooSkewed"), "RequestTimeTooSkewed", remedy="set the clock"),
    "expired token": Refusal(s3_error(400, "ExpiredToken"), "ExpiredToken", remedy="renew"),
}


async def open_s3(
    name: str, request: pytest.FixtureRequest, folder: Path, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[BucketBackend]:
    """Give a prefix of a new bucket on the server of this name."""
    server: S3Server = request.getfixturevalue("s3_servers").with_bucket(name)  # a restart of moto loses its buckets
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    patch.setenv("AWS_ACCESS_KEY_ID", server.key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)

    def make(endpoint: str, prefix: str, is_there: bool) -> S3Client:  # noqa: FBT001 - as `opening` calls it
        name = server.bucket if is_there else "missing-bucket"
        return S3Client(S3Bucket(name, prefix, "us-east-1", endpoint), timeout_s=timeout_s)

    async with opening(name, server.port, make, server.objects, folder) as backend:
        assert backend.store.client.features.conditional_put == KINDS[name].conditional
        yield backend
