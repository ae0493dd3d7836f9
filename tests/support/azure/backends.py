"""Containers as backends of the contract of all stores (`tests/storage/test_contract.py`), and clients of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from imgkeep.clock import read_clock
from imgkeep.core.store_url import AzureContainer
from imgkeep.storage.azure import AzureClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import pytest

    from tests.support.azure.azurite import Azurite

TIMEOUT_S = 10
"""Timeout for a request, which a busy machine needs."""


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
