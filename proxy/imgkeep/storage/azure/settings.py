"""
The storage account of a container, and the credentials for it, as Azure's tools find them in the environment.

Rules:
- `AZURE_STORAGE_CONNECTION_STRING` comes first, then `AZURE_STORAGE_KEY`, then `AZURE_STORAGE_SAS_TOKEN`. Without them
  azure-identity finds the credentials of this machine.
- `?account=` of `store.url` must not contradict them: a key works for one account only.
- A message names the variable and never quotes its value.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from imgkeep.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgkeep.core.store_url import AzureContainer

CONNECTION_STRING: Final = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT: Final = "AZURE_STORAGE_ACCOUNT"
KEY: Final = "AZURE_STORAGE_KEY"
SAS_TOKEN: Final = "AZURE_STORAGE_SAS_TOKEN"  # noqa: S105 - the name of a variable
ENDPOINT: Final = "AZURE_STORAGE_SERVICE_ENDPOINT"
"""The URL of the Blob service, as the Azure command line reads it: for sovereign clouds and own domains."""

EMULATOR_ACCOUNT: Final = "devstoreaccount1"
EMULATOR_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The published key of every emulator (Microsoft, "Use the Azurite emulator")."""
EMULATOR_PORT: Final = 10000
SUFFIX: Final = "core.windows.net"

_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-]{1,64})?")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A key of the account: grants everything."""

    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SasToken:
    """A shared access signature: what it grants, and until when, stands in its query."""

    query: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """Access tokens of Microsoft Entra ID, as azure-identity finds them."""


Credentials = AccountKey | SasToken | MachineIdentity


@dataclass(frozen=True, slots=True)
class StorageAccount:
    """
    A storage account.

    Attributes:
        name: Its name.
        endpoint: URL of its Blob service, without a slash at the end.
        credentials: What requests are authorized with.
    """

    name: str
    endpoint: str
    credentials: Credentials


def read_account(container: AzureContainer, environment: Mapping[str, str]) -> StorageAccount:
    """
    Return the storage account of a container.

    Raises:
        ConfigError: A variable is malformed, they contradict each other, or none names the account.
    """
    if text := environment.get(CONNECTION_STRING, "").strip():
        account = _read_connection_string(text, container.account)
    else:
        account = _read_variables(container.account, environment)
    if container.account not in {None, account.name}:
        raise ConfigError(f"store.url: account= names another storage account than {CONNECTION_STRING}")
    parts = urlsplit(account.endpoint)
    if isinstance(account.credentials, MachineIdentity) and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError(f"store.url: access tokens go over https only, and {parts.hostname} is named with http")
    return account


def _read_variables(named: str | None, environment: Mapping[str, str]) -> StorageAccount:
    name = environment.get(ACCOUNT, "").strip()
    key, sas = environment.get(KEY, "").strip(), environment.get(SAS_TOKEN, "").strip()
    if named and name and named != name and (key or sas):
        raise ConfigError(f"store.url: account= names another storage account than {ACCOUNT}, whose key is set")
    source, name = ("store.url: account=", named) if named else (ACCOUNT, name)
    if not name:
        raise ConfigError(
            f"store.url: no storage account is named: add ?account=NAME, or set {CONNECTION_STRING} or {ACCOUNT}"
        )
    if not _ACCOUNT.fullmatch(name):
        raise ConfigError(f"{source}: expected the name of a storage account, 3 to 24 lower-case letters and digits")
    endpoint = environment.get(ENDPOINT, "").strip()
    return StorageAccount(
        name,
        _read_endpoint(endpoint, ENDPOINT) if endpoint else f"https://{name}.blob.{SUFFIX}",
        _read_credentials(key, KEY, sas, SAS_TOKEN),
    )


def _read_connection_string(text: str, named: str | None) -> StorageAccount:
    malformed = f"{CONNECTION_STRING}: expected NAME=VALUE;NAME=VALUE, as the access keys page of the account shows it"
    fields: dict[str, str] = {}
    for part in text.strip(";").split(";"):
        name, separator, value = part.partition("=")
        name = name.strip().lower()
        if not separator or not name.isalpha() or name in fields:
            raise ConfigError(malformed)
        fields[name] = value.strip()
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        return _emulator(fields.get("developmentstorageproxyuri", ""))
    credentials = _read_credentials(
        fields.get("accountkey", ""),
        f"{CONNECTION_STRING}: AccountKey",
        fields.get("sharedaccesssignature", ""),
        f"{CONNECTION_STRING}: SharedAccessSignature",
    )
    name, endpoint = fields.get("accountname", ""), fields.get("blobendpoint", "")
    if endpoint:
        endpoint = _read_endpoint(endpoint, f"{CONNECTION_STRING}: BlobEndpoint")
        name = name or named or _account_of(endpoint)
    if not _ACCOUNT.fullmatch(name):
        raise ConfigError(f"{CONNECTION_STRING}: there is no AccountName of 3 to 24 lower-case letters and digits")
    if not endpoint:
        scheme = fields.get("defaultendpointsprotocol", "https").lower()
        endpoint = _read_endpoint(
            f"{scheme}://{name}.blob.{fields.get('endpointsuffix') or SUFFIX}",
            f"{CONNECTION_STRING}: DefaultEndpointsProtocol, EndpointSuffix",
        )
    return StorageAccount(name, endpoint, credentials)


def _read_credentials(key: str, key_source: str, sas: str, sas_source: str) -> Credentials:
    if key:
        try:
            value = b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            value = b""
        if not value:
            raise ConfigError(f"{key_source}: expected the key of a storage account, which is base64")
        return AccountKey(value)
    if sas:
        sas = sas.removeprefix("?")
        fields = dict(parse_qsl(sas, keep_blank_values=True))
        if not sas.isascii() or not sas.isprintable() or " " in sas or not {"sig", "sv"} <= set(fields):
            raise ConfigError(f"{sas_source}: expected a shared access signature, like sv=...&sp=...&sig=...")
        return SasToken(sas)
    return MachineIdentity()


def _read_endpoint(url: str, source: str) -> str:
    expected = f"{source}: expected a URL with its scheme, like https://NAME.blob.{SUFFIX}"
    if not url.isprintable():
        raise ConfigError(expected)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(expected) from None
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/")
    usable = parts.scheme in {"http", "https"} and _HOST.fullmatch(host) and _PATH.fullmatch(path)
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(expected)
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def _account_of(endpoint: str) -> str:
    """Return the account that an endpoint names: in its path (emulators), or at the beginning of its host."""
    parts = urlsplit(endpoint)
    return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]


def _emulator(proxy: str) -> StorageAccount:
    base = _read_endpoint(proxy, f"{CONNECTION_STRING}: DevelopmentStorageProxyUri") if proxy else "http://127.0.0.1"
    endpoint = f"{base}:{EMULATOR_PORT}/{EMULATOR_ACCOUNT}"
    return StorageAccount(EMULATOR_ACCOUNT, endpoint, AccountKey(b64decode(EMULATOR_KEY)))
