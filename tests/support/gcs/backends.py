"""Buckets of Google Cloud Storage as backends of the tests of all stores."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imgkeep.core.store_url import GcsBucket
from imgkeep.storage.gcs import GcsClient
from tests.support.bucket_backends import TIMEOUT_S, BucketBackend, Refusal, opening
from tests.support.gcs.accounts import service_account, use_credentials
from tests.support.gcs.strict_server import BUCKET, StrictGcs
from tests.support.s3.misbehaving import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from tests.support.gcs.fake_gcs_server import FakeGcsServer

SERVER = "fake-gcs-server"
STRICT = "strict-gcs"
"""The server of `strict_server`, in the process of the tests."""


def refusal(status: int, reason: str, message: str = "") -> Answer:
    """Return the answer of the JSON API with an error."""
    causes = [{"message": message, "domain": "global", "reason": reason}]
    body = json.dumps({"error": {"code": status, "message": message, "errors": causes}})
    return Answer(status, {"Content-Type": "application/json; charset=UTF-8"}, body.encode())


REFUSALS = {
    "throttled": Refusal(
        refusal(429, "rateLimitExceeded"), "rateLimitExceeded", general=False, remedy="limits requests"
    ),
    "overloaded": Refusal(refusal(503, "backendError"), "backendError"),
    "internal": Refusal(refusal(500, "internalError"), "internalError", general=False),
    "no rights": Refusal(refusal(403, "forbidden"), "forbidden", general=False, remedy="roles/storage.objectUser"),
    "missing bucket": Refusal(
        refusal(404, "notFound", "The specified bucket does not exist."), "noSuchBucket", remedy="create the bucket"
    ),
    "expired token": Refusal(refusal(401, "authError"), "401", remedy="set the clock"),
    "no billing": Refusal(refusal(403, "accountDisabled"), "accountDisabled", remedy="enable billing"),
}
WITHOUT = {
    "clock skew": "only the server for tokens compares clocks: tests/gcs/test_credentials.py",
}


async def open_gcs(
    name: str, request: pytest.FixtureRequest, folder: Path, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[BucketBackend]:
    """Give a prefix of a new bucket on the server of this name."""
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    if name == STRICT:
        async for backend in _open_strict(patch, folder, timeout_s):
            yield backend
        return
    server: FakeGcsServer = request.getfixturevalue("fake_gcs_server")

    def make(endpoint: str, prefix: str, is_there: bool) -> GcsClient:  # noqa: FBT001 - as `opening` calls it
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        return GcsClient(GcsBucket(server.bucket if is_there else "missing", prefix), timeout_s=timeout_s)

    async with opening(name, server.port, make, server.objects, folder) as backend:
        assert backend.store.client.features.conditional_put
        yield backend


async def _open_strict(patch: pytest.MonkeyPatch, folder: Path, timeout_s: float) -> AsyncIterator[BucketBackend]:
    server = StrictGcs()
    await server.start()
    use_credentials(service_account(server.endpoint), folder.parent, patch)

    def make(endpoint: str, prefix: str, is_there: bool) -> GcsClient:  # noqa: FBT001 - as `opening` calls it
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        return GcsClient(GcsBucket(BUCKET if is_there else "missing", prefix), timeout_s=timeout_s)

    async def objects(prefix: str) -> dict[str, bytes]:
        return {name: stored.data for name, stored in server.objects.items() if name.startswith(prefix)}

    async with opening(STRICT, server.port, make, objects, folder) as backend:
        assert backend.store.client.features.conditional_put
        yield backend
    await server.stop()
