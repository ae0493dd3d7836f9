"""Tokens and signatures: where they come from, when they are renewed, and what is said when there are none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.gcs.credential_requests import Transport
from imgkeep.storage.gcs.credentials import SIGNERS_MAX, GcsCredentials
from tests.support.gcs.accounts import ACCOUNT, authorized_user, external_account, service_account, use_credentials
from tests.support.gcs.opened import FIELDS, PATH, opening, read
from tests.support.loopback import HOST, port_of, reserve
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.gcs.strict_server import StrictGcs

GOOGLES = ("http://127.0.0.1:9", "https://iamcredentials.googleapis.com", "https://oauth2.googleapis.com")
"""Servers that no file with credentials names. The first has a machine's metadata, by the settings of all tests."""
SECRETS = ("secret", "BEGIN PRIVATE KEY", "token-")


def leading_to(endpoint: str) -> Callable[[float], Transport]:
    """Return a maker of transports for which one server is all of Google's."""

    class Redirected(Transport):
        def __call__(self, url: str, *arguments: Any, **options: Any) -> Any:
            for host in GOOGLES:
                url = url.replace(host, endpoint)
            assert url.startswith(endpoint), url
            return super().__call__(url, *arguments, **options)

    return Redirected


async def fault_of(client_call: Any) -> BucketError:
    with pytest.raises(BucketError) as caught:
        await client_call
    fault = caught.value
    assert not [secret for secret in SECRETS if secret in f"{fault.in_full} {fault.remedy}"]
    return fault


# --- renewal


async def test_concurrent_requests_share_one_token(strict_gcs: StrictGcs) -> None:
    async with opening() as client:
        assert await asyncio.gather(*(client.get(PATH) for _ in range(10))) == [None] * 10
        assert await client.get(PATH) is None
    assert strict_gcs.accounts.issued == 1


async def test_token_that_soon_ends_is_renewed_beside_requests(strict_gcs: StrictGcs) -> None:
    accounts = strict_gcs.accounts
    async with opening() as client:
        accounts.token_life_s = 120
        await client.get(PATH)
        await client.get(PATH)
        assert accounts.issued == 1, "not twice within seconds"
        client._connection.credentials._renewed_at = float("-inf")
        accounts.holds, accounts.token_life_s = asyncio.Event(), 3600
        for _ in range(3):
            await client.get(PATH)  # does not wait for the token
        assert accounts.issued == 1
        accounts.holds.set()
        await until(lambda: accounts.issued == 2)
        for _ in range(3):
            await client.get(PATH)
    assert accounts.issued == 2


async def test_token_that_has_ended_is_renewed_before_a_request(strict_gcs: StrictGcs) -> None:
    strict_gcs.accounts.token_life_s = 0
    async with opening() as client:
        for _ in range(2):
            assert await client.get(PATH) is None
    assert strict_gcs.accounts.issued == 2


async def test_refused_token_is_renewed_once(strict_gcs: StrictGcs) -> None:
    async with opening() as client:
        await client.put_bytes(PATH, b"body", FIELDS)
        strict_gcs.accounts.revoke_all()
        assert await asyncio.gather(*(read(client) for _ in range(5))) == [b"body"] * 5
        assert strict_gcs.accounts.issued == 2


async def test_token_that_is_always_refused_is_a_fault(strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_gcs.accounts, "accepts", lambda _: False)  # of the server, and not of imgkeep
    async with opening() as client:
        fault = await fault_of(client.get(PATH))
    assert (str(fault), fault.general, strict_gcs.accounts.issued) == ("the bucket answers 401", True, 2)
    assert "clock" in str(fault.remedy)


async def test_server_for_tokens_that_hangs_is_named(strict_gcs: StrictGcs) -> None:
    strict_gcs.accounts.holds = asyncio.Event()
    async with opening() as client:
        credentials = client._connection.credentials
        credentials._wait_s = 0.2
        fault = await fault_of(client.get(PATH))
        assert "the server for tokens does not answer" in str(fault)
        strict_gcs.accounts.holds.set()
        await until(lambda: credentials._renewal is None)
        credentials._wait_s = 10
        assert await client.get(PATH) is None


async def test_cancelled_request_does_not_end_the_renewal(strict_gcs: StrictGcs) -> None:
    accounts = strict_gcs.accounts
    accounts.holds = asyncio.Event()
    async with opening() as client:
        first, second = (asyncio.create_task(client.get(PATH)) for _ in range(2))
        await until(lambda: strict_gcs.count("POST", "/token") == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        accounts.holds.set()
        assert await second is None
    assert accounts.issued == 1


async def test_end_does_not_wait_for_a_server_that_hangs(strict_gcs: StrictGcs) -> None:
    strict_gcs.accounts.holds = asyncio.Event()
    async with asyncio.timeout(5), opening(timeout_s=0.2) as client:
        await fault_of(client.get(PATH))
    strict_gcs.accounts.holds.set()


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        ("invalid_grant", "answers invalid_grant", "set the clock of this machine"),
        ("<script>", "refuses, or is another server", "set the clock of this machine"),
    ],
)
async def test_refusal_of_a_token_has_a_remedy(strict_gcs: StrictGcs, code: str, message: str, remedy: str) -> None:
    strict_gcs.accounts.refuses_with = code
    async with opening() as client:
        fault = await fault_of(client.get(PATH))
    assert message in str(fault)
    assert remedy in str(fault.remedy)
    assert fault.general


async def test_server_for_tokens_that_is_away_is_named(
    strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = reserve()
    use_credentials(service_account(f"http://{HOST}:{port_of(holder)}"), tmp_path, monkeypatch)
    async with opening() as client:
        fault = await fault_of(client.get(PATH))
    assert fault.in_full == (
        f"the server for tokens, {HOST}, cannot be reached: Connection refused "
        f"(bucket strict-bucket at {HOST}:{strict_gcs.port})"
    )
    holder.close()


# --- sources


async def test_machine_has_tokens_and_a_signature_of_the_service(
    strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setattr("imgkeep.storage.gcs.credentials.SERVICE", strict_gcs.endpoint)  # as if it were no emulator
    async with opening(make_transport=leading_to(strict_gcs.endpoint)) as client:
        await client.put_bytes(PATH, b"body", FIELDS)
        assert client.features.presign
        link, life_s = await client.presign(PATH, ttl_s=1_000_000, head=False)
        assert life_s == 43_200
        assert ACCOUNT.replace("@", "%40") in link
        strict_gcs.accounts.may_sign = False
        fault = await fault_of(client.presign(PATH, ttl_s=60, head=False))
    assert "roles/iam.serviceAccountTokenCreator" in str(fault.remedy)
    assert not fault.general


async def test_no_credentials_are_a_fault_with_a_remedy(strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setattr("imgkeep.storage.gcs.credentials.SERVICE", strict_gcs.endpoint)
    async with opening() as client:
        fault = await fault_of(client.get(PATH))
    assert "there are no credentials" in str(fault)
    assert str(fault.remedy).startswith("set GOOGLE_APPLICATION_CREDENTIALS to a file")
    assert strict_gcs.seen == []


async def test_emulator_needs_no_credentials(strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    async with opening() as client:
        assert not client.features.presign
        fault = await fault_of(client.get(PATH))  # this one is strict
        assert fault.error_code == "401"
        assert "cannot sign links" in str(await fault_of(client.presign(PATH, ttl_s=60, head=False)))
    assert [method for method, _ in strict_gcs.seen] == ["GET"]


async def test_emulator_on_another_machine_gets_no_token_without_tls(strict_gcs: StrictGcs) -> None:
    credentials = GcsCredentials(timeout_s=1)
    await credentials.open("http://emulator.example:4443")
    assert await credentials.headers() == {}
    assert not credentials.can_sign
    await credentials.aclose()
    assert strict_gcs.accounts.issued == 0


async def test_login_of_a_user_reads_and_signs_nothing(
    strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_credentials(authorized_user(strict_gcs.endpoint), tmp_path, monkeypatch)
    async with opening(make_transport=leading_to(strict_gcs.endpoint)) as client:
        assert await client.get(PATH) is None
        assert not client.features.presign
        fault = await fault_of(client.presign(PATH, ttl_s=60, head=False))
    assert "cannot sign links" in str(fault)


@pytest.mark.parametrize("impersonates", [False, True])
async def test_workload_identity_signs_where_it_impersonates(
    strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, impersonates: bool
) -> None:
    info = external_account(strict_gcs.endpoint, tmp_path / "subject-token", impersonates=impersonates)
    use_credentials(info, tmp_path, monkeypatch)
    async with opening(make_transport=leading_to(strict_gcs.endpoint)) as client:
        await client.put_bytes(PATH, b"body", FIELDS)
        assert client.features.presign is impersonates
        if impersonates:
            assert (await client.presign(PATH, ttl_s=60, head=False))[1] == 60
    assert strict_gcs.accounts.issued == 1 + impersonates


async def test_impersonation_signs_by_the_same_transport(
    strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{ACCOUNT}"
    info = {
        "type": "impersonated_service_account",
        "service_account_impersonation_url": f"{account}:generateAccessToken",
        "source_credentials": authorized_user(strict_gcs.endpoint),
    }
    use_credentials(info, tmp_path, monkeypatch)
    async with opening(make_transport=leading_to(strict_gcs.endpoint)) as client:
        await client.put_bytes(PATH, b"body", FIELDS)
        link, _ = await client.presign(PATH, ttl_s=60, head=False)
    assert ACCOUNT.replace("@", "%40") in link
    assert strict_gcs.count("POST", ":signBlob") == 1


async def test_signatures_that_hang_leave_no_work_behind(
    strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = external_account(strict_gcs.endpoint, tmp_path / "subject-token", impersonates=True)
    use_credentials(info, tmp_path, monkeypatch)
    async with opening(make_transport=leading_to(strict_gcs.endpoint)) as client:
        await client.get(PATH)
        client._connection.credentials._wait_s = 0.3
        strict_gcs.accounts.signs = asyncio.Event()
        calls = (client.presign(PATH, ttl_s=60, head=False) for _ in range(20))
        faults = await asyncio.gather(*calls, return_exceptions=True)
        assert {str(fault) for fault in faults} == {"the service that signs does not answer within store.timeout_s"}
        # A thread may take up one more while its first caller gives up.
        assert strict_gcs.count("POST", ":signBlob") <= 2 * SIGNERS_MAX
        assert await client.get(PATH) is None
    strict_gcs.accounts.signs.set()
