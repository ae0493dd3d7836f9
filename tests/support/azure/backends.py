"""Containers as backends of the contract of all stores (`tests/storage/test_contract.py`), and clients of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from imgkeep.clock import read_clock
from imgkeep.core.store_url import AzureContainer
from imgkeep.storage.azure import AzureClient
from tests.support.bucket_backends import TIMEOUT_S, BucketBackend, Refusal, opening
from tests.support.s3.misbehaving import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    import pytest

    from tests.support.azure.azurite import Azurite

SERVER = "azurite"
DAY_BEFORE = "Mon, 01 Jan 2001 00:00:00 GMT"


def refusal(status: int, code: str, date: str = "") -> Answer:
    """Return the answer of Azure with an error code."""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    fields = {"Content-Type": "application/xml", "x-ms-error-code": code, **({"Date": date} if date else {})}
    return Answer(status, fields, body.encode())


REFUSALS = {
    "throttled": Refusal(refusal(429, "TooManyRequests"), "TooManyRequests"),
    "overloaded": Refusal(refusal(503, "ServerBusy"), "ServerBusy", remedy="limits requests"),
    "internal": Refusal(refusal(500, "InternalError"), "InternalError", general=False, remedy="wait"),
    "wrong key": Refusal(
        refusal(403, "AuthenticationFailed"), "AuthenticationFailed", remedy="the account and its key"
    ),
    "no rights": Refusal(
        refusal(403, "AuthorizationPermissionMismatch"),
        "AuthorizationPermissionMismatch",
        general=False,
        remedy="assign the role",
    ),
    "missing bucket": Refusal(refusal(404, "ContainerNotFound"), "ContainerNotFound", remedy="create the container"),
    "clock skew": Refusal(
        refusal(403, "AuthenticationFailed", DAY_BEFORE), "AuthenticationFailed", remedy="set the clock"
    ),
    "expired token": Refusal(refusal(401, "InvalidAuthenticationInfo"), "InvalidAuthenticationInfo"),
}


async def open_azure(
    name: str, request: pytest.FixtureRequest, folder: Path, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[BucketBackend]:
    """Give a prefix of a new container."""
    server: Azurite = request.getfixturevalue("azurite")
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")

    def make(endpoint: str, prefix: str, is_there: bool) -> AzureClient:  # noqa: FBT001 - as `opening` calls it
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.through(endpoint).connection_string)
        name = server.container if is_there else "missing-container"
        return AzureClient(AzureContainer(name, prefix), timeout_s=timeout_s)

    async with opening(name, server.port, make, server.objects, folder) as backend:
        assert backend.store.client.features.conditional_put
        yield backend


def container_of(azurite: Azurite, prefix: str = "") -> AzureContainer:
    return AzureContainer(azurite.container, prefix)


@asynccontextmanager
async def azure_client(
    azurite: Azurite,
    patch: pytest.MonkeyPatch,
    *,
    container: str = "",
    prefix: str = "",
    key: str = "",
    sas: str = "",
    timeout_s: float = TIMEOUT_S,
) -> AsyncGenerator[AzureClient]:
    """Give an open client: with the account's key, another `key`, or a SAS with these rights."""
    endpoint = f"BlobEndpoint={azurite.endpoint}/{azurite.account};AccountName={azurite.account};"
    if sas:
        token = generate_container_sas(
            azurite.account,
            azurite.container,
            account_key=azurite.key,
            permission=ContainerSasPermissions.from_string(sas),
            expiry=read_clock() + timedelta(hours=1),
        )
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{endpoint}SharedAccessSignature={token}")
    else:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{endpoint}AccountKey={key or azurite.key}")
    client = AzureClient(AzureContainer(container or azurite.container, prefix), timeout_s=timeout_s)
    await client.open()
    try:
        yield client
    finally:
        await client.aclose()
