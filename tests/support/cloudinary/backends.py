"""Folders of Cloudinary as backends of the tests of all stores."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imgkeep.core.store_url import CloudinaryFolder
from imgkeep.storage.cloudinary import CloudinaryClient
from tests.support.bucket_backends import TIMEOUT_S, BucketBackend, Refusal, opening
from tests.support.cloudinary.server import CloudinaryServer
from tests.support.s3.misbehaving import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import pytest

SERVER = "cloudinary"


def refusal(status: int, message: str) -> Answer:
    """Return Cloudinary's answer with an error."""
    return Answer(status, {"Content-Type": "application/json"}, json.dumps({"error": {"message": message}}).encode())


REFUSALS = {
    "throttled": Refusal(refusal(429, "Rate Limit Exceeded"), "RateLimited", general=False, remedy="larger plan"),
    "overloaded": Refusal(refusal(503, "Service Unavailable"), "503"),
    "internal": Refusal(refusal(500, "General Error"), "500"),
    "wrong key": Refusal(refusal(401, "Unknown API key 1"), "UnknownApiKey", remedy="API key in CLOUDINARY_URL"),
    "wrong secret": Refusal(
        refusal(401, "Invalid Signature 1. String to sign - 'a=b'."),
        "InvalidSignature",
        remedy="API secret in CLOUDINARY_URL",
    ),
    "no rights": Refusal(refusal(403, "Forbidden"), "NotAllowed", general=False, remedy="give the API key the right"),
    "missing bucket": Refusal(refusal(401, "Invalid cloud_name x"), "InvalidCloudName", remedy="cloud name"),
    "clock skew": Refusal(
        refusal(400, "Stale request - reported time is 1 which is more than 1 hour ago"),
        "StaleRequest",
        remedy="set the clock",
    ),
}
WITHOUT = {"expired token": "its API keys have no end"}


async def open_cloudinary(
    name: str, _request: pytest.FixtureRequest, folder: Path, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[BucketBackend]:
    """Give a folder of a new server. It takes every file for a PNG, because the bodies of these tests are no images."""
    server = CloudinaryServer(images_only=False)
    await server.start()

    def make(endpoint: str, prefix: str, is_there: bool) -> CloudinaryClient:  # noqa: FBT001 - as `opening` calls it
        url = server.url(endpoint)
        environment = {"CLOUDINARY_URL": url if is_there else url.replace(f"@{server.cloud}?", "@missing?")}
        return CloudinaryClient(CloudinaryFolder(prefix), timeout_s=timeout_s, environment=environment)

    async def objects(prefix: str) -> Mapping[str, bytes]:
        return {path: body for path, body in server.paths().items() if path.startswith(prefix)}

    async with opening(name, server.port, make, objects, folder) as backend:
        yield backend
    await server.stop()
