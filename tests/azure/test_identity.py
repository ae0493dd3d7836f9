"""
Access tokens of a machine's identity, by azure-identity, and the links that they sign.

No test asks for a missing blob by HEAD: Azurite frames that answer so that a client has to close the connection, and
over TLS that takes longer than a test.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import connector
from urllib3.exceptions import InsecureRequestWarning
from yarl import URL

from imgkeep.core.store_url import AzureContainer
from imgkeep.storage.azure import AzureClient, access_tokens
from imgkeep.storage.azure.access_tokens import AccessTokens
from imgkeep.storage.azure.errors import AUTHENTICATION
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.bucket.store import BucketStore
from tests.support.azure.azurite import Azurite, azurite_in
from tests.support.azure.identity import AUDIENCE, SECRET, IdentityEndpoint, authority
from tests.support.clock import FakeClock
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

IMAGE = ObjectFields("image/png")
PATH = "v1/objects/00/0000.png"
_NUMBERS = count(1)


@pytest.fixture
async def identity(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[IdentityEndpoint]:
    endpoint = IdentityEndpoint()
    await endpoint.start(monkeypatch)
    yield endpoint
    await endpoint.stop()


@pytest.fixture(scope="module")
def azurite_with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite over TLS, which checks access tokens and gives user delegation keys."""
    folder = tmp_path_factory.mktemp("azurite")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    issued = authority().issue_cert("127.0.0.1")
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    # The context of all sessions that name none; there is no setting for one more authority.
    connector._SSL_CONTEXT_VERIFIED.load_verify_locations(cadata=authority().cert_pem.bytes().decode())
    server = azurite_in(folder, certificate=certificate, key=key)
    try:
        server.start()
        with warnings.catch_warnings(category=InsecureRequestWarning, action="ignore"):
            made = server.with_container()
        yield made
    finally:
        server.stop()
        server.process.holder.close()


@pytest.fixture
async def client(
    azurite_with_tokens: Azurite, identity: IdentityEndpoint, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AzureClient]:
    assert identity.requests == 0
    async with client_of(azurite_with_tokens, monkeypatch) as client:
        yield client


@asynccontextmanager
async def client_of(azurite: Azurite, patch: pytest.MonkeyPatch) -> AsyncIterator[AzureClient]:
    """Give a client that has no secret, on a prefix of its own."""
    patch.setenv("AZURE_STORAGE_ACCOUNT", azurite.account)
    patch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{azurite.endpoint}/{azurite.account}")
    client = AzureClient(AzureContainer(azurite.container, f"pre-{next(_NUMBERS)}"), timeout_s=10)
    await client.open()
    try:
        yield client
    finally:
        await client.aclose()


# --- requests


async def test_identity_may_do_all_that_a_key_may(client: AzureClient, identity: IdentityEndpoint) -> None:
    store = BucketStore(client)
    await store.probe()
    steps = [step async for step in check_bucket(store, public_url=None)]
    assert {step.error for step in steps} == {None}
    assert {"presign", "copy"} <= {step.name for step in steps}
    assert identity.requests == 1


async def test_concurrent_requests_share_one_token(client: AzureClient, identity: IdentityEndpoint) -> None:
    identity.go.clear()
    calls = [asyncio.create_task(client.get(f"{PATH}{n}")) for n in range(20)]
    await identity.arrived.wait()
    identity.go.set()
    assert await asyncio.gather(*calls) == [None] * 20
    assert identity.requests == 1


async def test_refused_token_is_replaced(client: AzureClient, identity: IdentityEndpoint) -> None:
    identity.audience = "https://management.azure.com"
    with pytest.raises(BucketError) as refused:
        await client.get(PATH)
    assert refused.value.error_code in AUTHENTICATION
    assert "tenant" in (refused.value.remedy or "")
    identity.audience = AUDIENCE
    assert await client.get(PATH) is None
    assert identity.requests == 2


async def test_workload_identity_is_found(
    azurite_with_tokens: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endpoint = IdentityEndpoint()
    await endpoint.start_workload(monkeypatch, tmp_path)
    try:
        async with client_of(azurite_with_tokens, monkeypatch) as client:
            assert await client.get(PATH) is None
            assert await client.get(PATH) is None
    finally:
        await endpoint.stop()
    assert endpoint.requests == 1


# --- links


async def test_link_of_an_identity_reads_one_blob_and_costs_one_key(client: AzureClient) -> None:
    requests: list[str] = []
    client._connection.limits._observe = lambda operation, _outcome, _seconds: requests.append(operation)
    await client.put_bytes(PATH, b"one", IMAGE)
    links = [await client.presign(PATH, ttl_s=ttl_s, head=False) for ttl_s in (60, 3600, 60)]
    assert [life_s for _, life_s in links] == [60, 3600, 60]
    assert requests.count("get_user_delegation_key") == 1
    async with aiohttp.ClientSession() as session:
        for url, _ in links:
            async with session.get(URL(url, encoded=True)) as response:
                assert (response.status, await response.read()) == (200, b"one")
        async with session.get(URL(links[0][0].replace(PATH, f"{PATH}2"), encoded=True)) as response:
            assert (response.status, b"<Error>" in await response.read()) == (403, True)
    long, life_s = await client.presign(PATH, ttl_s=30 * 86400, head=False)
    assert 6 * 86400 < life_s < 7 * 86400
    assert requests.count("get_user_delegation_key") == 2
    assert re.search(r"&ske=", long)


# --- faults of the identity


async def test_hung_identity_is_a_fault_in_time_and_blames_the_identity(
    client: AzureClient, identity: IdentityEndpoint
) -> None:
    identity.go.clear()
    client._connection._tokens._timeout_s = 0.3
    with pytest.raises(BucketError, match="access token") as failed:
        await client.get(PATH)
    assert "docs/azure.md" in (failed.value.remedy or "")
    identity.go.set()
    await until(lambda: client._connection._tokens._renewal is None)
    assert await client.get(PATH) is None


async def test_identity_that_hangs_for_ever_holds_few_threads(
    client: AzureClient, identity: IdentityEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_tokens, "CALL_TIMEOUT_S", 0.05)
    identity.go.clear()
    tokens = client._connection._tokens
    for _ in range(access_tokens.CALLS_MAX):
        with pytest.raises(BucketError, match="no credential of this machine"):
            await client.get(PATH)
    with pytest.raises(BucketError, match="do not end"):
        await client.get(PATH)
    identity.go.set()
    await until(lambda: tokens._calls == 0)
    monkeypatch.setattr(access_tokens, "CALL_TIMEOUT_S", 10)
    assert await client.get(PATH) is None


async def test_cancelled_request_leaves_the_token_to_the_others(
    client: AzureClient, identity: IdentityEndpoint
) -> None:
    identity.go.clear()
    first, second = (asyncio.create_task(client.get(PATH)) for _ in range(2))
    await identity.arrived.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    identity.go.set()
    assert await second is None
    assert client._connection.limits._slots._value == 128


async def test_refusing_identity_is_a_fault_without_its_words(client: AzureClient, identity: IdentityEndpoint) -> None:
    identity.status = 403
    with pytest.raises(BucketError, match="no credential of this machine") as failed:
        await client.get(PATH)
    assert SECRET not in failed.value.in_full
    assert failed.value.general


# --- renewal


async def test_token_is_renewed_before_its_end_and_used_meanwhile(identity: IdentityEndpoint) -> None:
    clock = FakeClock()
    tokens = AccessTokens(timeout_s=5, clock=clock)
    answers = iter([("one", 1000), ("two", 1000)])

    def call() -> tuple[str, float]:
        token, life_s = next(answers)
        return token, clock().timestamp() + life_s

    tokens._call_library = call  # type: ignore[method-assign]
    assert await tokens.get() == "one"
    clock.advance(800)
    assert await tokens.get() == "one"
    await until(lambda: tokens._renewal is None)
    assert await tokens.get() == "two"
    clock.advance(800)
    assert await tokens.get() == "two"  # the renewal fails: there are no more
    await until(lambda: tokens._renewal is None)
    assert await tokens.get() == "two"
    clock.advance(300)
    with pytest.raises(BucketError):
        await tokens.get()
    assert identity.requests == 0
