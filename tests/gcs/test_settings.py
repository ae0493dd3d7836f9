"""Mistakes in the environment and in files with credentials: named, without a request, and without their content."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.config import ConfigError
from imgkeep.core.store_url import GcsBucket
from imgkeep.storage.gcs import GcsClient
from tests.support.gcs.accounts import ACCOUNT, authorized_user, external_account, service_account, use_credentials

if TYPE_CHECKING:
    from pathlib import Path

ENDPOINT = "http://127.0.0.1:9"
SECRET = "a-secret"


async def mistake() -> str:
    client = GcsClient(GcsBucket("bucket"))
    with pytest.raises(ConfigError) as caught:
        await client.check_settings()
    with pytest.raises(ConfigError):
        await client.open()
    await client.aclose()
    (message,) = caught.value.messages
    assert SECRET not in message
    return message


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in service_account(ENDPOINT).items() if name != field}


def external_account_of(source: object) -> dict[str, Any]:
    kinds = dict.fromkeys(("audience", "subject_token_type", "token_url"), "x")
    return {"type": "external_account", "credential_source": source, **kinds}


def impersonation_of(source: object) -> dict[str, Any]:
    kinds = {"type": "impersonated_service_account", "source_credentials": source}
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"
    return {**kinds, "service_account_impersonation_url": url}


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no JSON file with credentials"),
    "no JSON": (b"{" + SECRET.encode(), "is no JSON file with credentials"),
    "not UTF-8": (b'{"type": "\xff"}', "is no JSON file with credentials"),
    "a list": (b'["a-secret"]', "is no JSON file with credentials"),
    "deep": (b"[" * 100_000, "is no JSON file with credentials"),
    "large": (b" " * 300_000 + b"{}", "is no JSON file with credentials"),
    "no type": (b"{}", "has no type that is known; expected one of service_account, authorized_user,"),
    "another type": (b'{"type": "a-secret"}', "has no type that is known"),
    "type of another kind": (b'{"type": ["service_account"]}', "has no type that is known"),
    "no key": (json.dumps(without("private_key")).encode(), "lacks private_key"),
    "two fields less": (b'{"type": "authorized_user", "client_id": "a-secret"}', "lacks client_secret, refresh_token"),
    "broken key": (
        json.dumps(service_account(ENDPOINT) | {"private_key": SECRET}).encode(),
        "its private_key, or another field, cannot be read; create the file anew",
    ),
    "a number as a key": (json.dumps(service_account(ENDPOINT) | {"private_key": 5}).encode(), "cannot be used"),
    "no source": (
        json.dumps(external_account_of(["a-secret"])).encode(),
        "cannot be used: a field is wrong",
    ),
    "nothing to impersonate": (
        json.dumps(impersonation_of({"type": "a-secret"})).encode(),
        "cannot be used: a field is wrong",
    ),
}


@pytest.mark.parametrize("name", FILES)
async def test_file_that_holds_no_credentials_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, expected = FILES[name]
    path = tmp_path / "key.json"
    path.write_bytes(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    message = await mistake()
    assert message.startswith(f"store.url: GOOGLE_APPLICATION_CREDENTIALS names {path}, which ")
    assert expected in message


async def test_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert (await mistake()).endswith(f"names {tmp_path}/key.json, which is not there")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert (await mistake()).endswith(f"names {tmp_path}, which cannot be read: Is a directory")


async def test_file_of_gcloud_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    path = tmp_path / "application_default_credentials.json"
    await GcsClient(GcsBucket("bucket")).check_settings()  # it is not there, which is no mistake
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(path / "below"))
    path.write_text("{")
    await GcsClient(GcsBucket("bucket")).check_settings()
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert f"the file of gcloud auth application-default, {path}, is no JSON" in await mistake()


@pytest.mark.parametrize("value", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:x", "http://a-secret@host/", "a\nb"])
async def test_address_of_an_emulator_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", value)
    assert (await mistake()).startswith("store.url: STORAGE_EMULATOR_HOST is no URL like http://")


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", "https://storage.googleapis.com/bucket/pre/a%20b"),
        ("http://gcs.internal:4443/", "http://gcs.internal:4443/bucket/pre/a%20b"),
        ("localhost:4443", "http://localhost:4443/bucket/pre/a%20b"),
        ("[::1]:4443", "http://[::1]:4443/bucket/pre/a%20b"),
    ],
)
async def test_public_url_is_that_of_the_service(value: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", value)
    client = GcsClient(GcsBucket("bucket", "pre"))
    await client.open()
    assert client.public_url("a b") == url
    await client.aclose()


async def test_good_files_pass_without_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = GcsClient(GcsBucket("bucket"))
    await client.check_settings()  # there is no file: perhaps this machine has a service account
    federation = external_account(ENDPOINT, tmp_path / "token", impersonates=True)
    impersonated = impersonation_of(authorized_user(ENDPOINT))
    for info in (service_account(ENDPOINT), authorized_user(ENDPOINT), federation, impersonated):
        use_credentials(info, tmp_path, monkeypatch)
        await client.check_settings()
        await client.open()
        await client.aclose()


def test_library_that_is_missing_is_named() -> None:
    code = """
import sys
sys.modules["google.auth"] = None
from imgkeep.bootstrap.bucket_clients import make_client
from imgkeep.config import ConfigError
from imgkeep.core.store_url import GcsBucket
try:
    make_client(GcsBucket("bucket"), timeout_s=1)
except ConfigError as error:
    print(*error.messages)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = "store.url: gs:// needs a library that is not installed: pip install 'imgkeep[gcs]'\n"
    assert done.stdout == expected
