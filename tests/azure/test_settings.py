"""The storage account and its credentials, as the environment names them."""

from __future__ import annotations

import sys
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.bucket_clients import make_client
from imgkeep.bootstrap.preflight import check_machine
from imgkeep.config import ConfigError
from imgkeep.core.store_url import AzureContainer
from imgkeep.storage.azure.settings import AccountKey, MachineIdentity, SasToken, read_account
from tests.support.server import configuration
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path

SECRET = b64encode(b"a secret that no message may quote").decode()
SAS = "sv=2024-11-04&ss=b&srt=co&sp=rwdlac&se=2030-01-01T00:00:00Z&sig=c2VjcmV0IHNpZ25hdHVyZQ%3D%3D"
STRING = "AZURE_STORAGE_CONNECTION_STRING"

USABLE = {
    "of the portal": (
        {STRING: f"DefaultEndpointsProtocol=https;AccountName=acc;AccountKey={SECRET};EndpointSuffix=core.windows.net"},
        "acc",
        "https://acc.blob.core.windows.net",
        AccountKey,
    ),
    "of another cloud, with a semicolon at the end": (
        {STRING: f"AccountName=acc;AccountKey={SECRET};EndpointSuffix=core.chinacloudapi.cn;"},
        "acc",
        "https://acc.blob.core.chinacloudapi.cn",
        AccountKey,
    ),
    "emulator": (
        {STRING: "UseDevelopmentStorage=true"},
        "devstoreaccount1",
        "http://127.0.0.1:10000/devstoreaccount1",
        AccountKey,
    ),
    "emulator on another host": (
        {STRING: "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://azurite"},
        "devstoreaccount1",
        "http://azurite:10000/devstoreaccount1",
        AccountKey,
    ),
    "SAS of the portal": (
        {STRING: f"BlobEndpoint=https://acc.blob.core.windows.net/;SharedAccessSignature={SAS}"},
        "acc",
        "https://acc.blob.core.windows.net",
        SasToken,
    ),
    "own domain": (
        {STRING: f"BlobEndpoint=https://images.example.com;AccountName=acc;AccountKey={SECRET}"},
        "acc",
        "https://images.example.com",
        AccountKey,
    ),
    "endpoint alone": (
        {STRING: "BlobEndpoint=https://acc.blob.core.windows.net"},
        "acc",
        "https://acc.blob.core.windows.net",
        MachineIdentity,
    ),
    "account and key": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": SECRET, "AZURE_STORAGE_SAS_TOKEN": SAS},
        "acc",
        "https://acc.blob.core.windows.net",
        AccountKey,
    ),
    "account and SAS": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SAS_TOKEN": f"?{SAS}"},
        "acc",
        "https://acc.blob.core.windows.net",
        SasToken,
    ),
    "account": ({"AZURE_STORAGE_ACCOUNT": "acc"}, "acc", "https://acc.blob.core.windows.net", MachineIdentity),
    "endpoint of the command line": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SERVICE_ENDPOINT": "https://acc.blob.core.usgovcloudapi.net/"},
        "acc",
        "https://acc.blob.core.usgovcloudapi.net",
        MachineIdentity,
    ),
    "empty variables count as unset": (
        {STRING: " ", "AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": ""},
        "acc",
        "https://acc.blob.core.windows.net",
        MachineIdentity,
    ),
}


@table(("environment", "name", "endpoint", "kind"), USABLE.values(), ids=USABLE)
def test_account_is_found_as_azure_finds_it(
    environment: dict[str, str], name: str, endpoint: str, kind: type[object]
) -> None:
    account = read_account(AzureContainer("images"), environment)
    assert (account.name, account.endpoint, type(account.credentials)) == (name, endpoint, kind)
    assert SECRET not in repr(account)
    assert "sig=" not in repr(account)


def test_account_of_the_url_comes_first() -> None:
    account = read_account(AzureContainer("images", account="mine"), {"AZURE_STORAGE_ACCOUNT": "other"})
    assert (account.name, account.endpoint) == ("mine", "https://mine.blob.core.windows.net")


MISTAKES = {
    "nothing": ({}, None, "no storage account is named"),
    "no pairs": ({STRING: SECRET.rstrip("=")}, None, STRING),
    "a name twice": ({STRING: f"AccountName=acc;AccountName=acc;AccountKey={SECRET}"}, None, STRING),
    "no account": ({STRING: f"AccountKey={SECRET}"}, None, "AccountName"),
    "key is no base64": ({STRING: f"AccountName=acc;AccountKey={SECRET}!"}, None, "AccountKey"),
    "key cut off": ({"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": SECRET[:-3]}, None, "AZURE_STORAGE_KEY"),
    "SAS without a signature": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sp={SECRET}"},
        None,
        "AZURE_STORAGE_SAS_TOKEN",
    ),
    "SAS with a line break": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SAS_TOKEN": f"{SAS}\r\nX: {SECRET}"},
        None,
        "AZURE_STORAGE_SAS_TOKEN",
    ),
    "endpoint without a scheme": ({STRING: f"BlobEndpoint=acc.blob;AccountName=acc;AccountKey={SECRET}"}, None, STRING),
    "endpoint with a password": (
        {STRING: f"BlobEndpoint=https://user:{SECRET[:9]}@acc.blob;AccountName=acc;AccountKey={SECRET}"},
        None,
        "BlobEndpoint",
    ),
    "endpoint with a bad port": (
        {STRING: f"BlobEndpoint=https://acc.blob:99999;AccountName=acc;AccountKey={SECRET}"},
        None,
        "BlobEndpoint",
    ),
    "suffix with a slash": (
        {STRING: f"AccountName=acc;AccountKey={SECRET};EndpointSuffix=a/b/c"},
        None,
        "EndpointSuffix",
    ),
    "account in capitals": ({"AZURE_STORAGE_ACCOUNT": "ACC"}, None, "AZURE_STORAGE_ACCOUNT"),
    "string of another account": ({STRING: f"AccountName=acc;AccountKey={SECRET}"}, "mine", "another storage account"),
    "key of another account": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": SECRET},
        "mine",
        "another storage account",
    ),
    "token without TLS": (
        {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SERVICE_ENDPOINT": "http://10.0.0.1/acc"},
        None,
        "https only",
    ),
    "long and hostile": ({STRING: ";".join(["a=b"] * 100_000)}, None, STRING),
}


@table(("environment", "account", "part"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_names_the_variable_and_no_secret(environment: dict[str, str], account: str | None, part: str) -> None:
    with pytest.raises(ConfigError) as failed:
        read_account(AzureContainer("images", account=account), environment)
    message = str(failed.value)
    assert part in message
    assert SECRET[:9] not in message
    assert len(message) < 300


async def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    client = make_client(AzureContainer("images"), timeout_s=5)
    await client.check_settings()
    monkeypatch.setitem(sys.modules, "azure", None)
    for name in [name for name in sys.modules if name.startswith("azure.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"pip install 'imgkeep\[azure\]'"):
        await client.check_settings()
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    await client.check_settings()


async def test_presign_is_refused_where_a_sas_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    store = {"url": "az://images/pre"}
    for mode in ("presign", "serve"):
        await check_machine(configuration(tmp_path, store=store, delivery={"mode": mode}))
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    await check_machine(configuration(tmp_path, store=store, delivery={"mode": "serve"}))
    with pytest.raises(ConfigError, match=r"delivery\.mode: presign"):
        await check_machine(configuration(tmp_path, store=store, delivery={"mode": "presign"}))
