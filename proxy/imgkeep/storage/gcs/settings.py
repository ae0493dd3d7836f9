"""
Google's settings besides the configuration of imgkeep: the environment, and the file with credentials that it names.

A mistake in them is the operator's, so it is a `ConfigError` that names the variable or the file. The message quotes no
line of a file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from google.auth import (
    aws,
    external_account_authorized_user,
    identity_pool,
    impersonated_credentials,
    pluggable,
)
from google.auth._cloud_sdk import get_application_default_credentials_path
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from imgkeep.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.auth.credentials import Credentials

VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
EMULATOR: Final = "STORAGE_EMULATOR_HOST"
SERVICE: Final = "https://storage.googleapis.com"
FILE_BYTES_MAX: Final = 262_144
"""Maximum size of a file with credentials; the service's own have some two thousand bytes."""

STORAGE_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
SCOPES: Final = (STORAGE_SCOPE, "https://www.googleapis.com/auth/iam")
"""Scopes of tokens: objects, and signatures of the service where there is no key."""

_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "service_account": ("client_email", "private_key", "token_uri"),
    "authorized_user": ("client_id", "client_secret", "refresh_token"),
    "external_account": ("audience", "subject_token_type", "token_url", "credential_source"),
    "external_account_authorized_user": ("audience", "client_id", "client_secret", "refresh_token", "token_url"),
    "impersonated_service_account": ("service_account_impersonation_url", "source_credentials"),
}
"""The types of files with credentials, and the fields that each has."""


def find_service() -> str:
    """
    Return the URL of the service: Google's, or that of an emulator.

    Raises:
        ConfigError: The variable holds none.
    """
    given = os.environ.get(EMULATOR, "")  # noqa: TID251 - where every program of Google's finds it
    if not given:
        return SERVICE
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    else:
        wrong = wrong or bool(parts.query or parts.fragment or parts.username) or not url.isprintable()
    if wrong:
        raise ConfigError(f"store.url: {EMULATOR} is no URL like http://127.0.0.1:4443")
    return url.rstrip("/")


def find_credentials() -> Credentials | None:
    """
    Return the credentials of the file that the environment names, else those of gcloud; `None`: there is no file.

    It blocks, and sends no request.

    Raises:
        ConfigError: The file cannot be used.
    """
    named = os.environ.get(VARIABLE, "")  # noqa: TID251 - where every program of Google's finds it
    path = Path(named or get_application_default_credentials_path())
    name = f"{VARIABLE} names {path}, which" if named else f"the file of gcloud auth application-default, {path},"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        if not named and not os.path.isfile(path):  # noqa: PTH113 - `Path.is_file` raises in a home of another user
            return None
        why = (
            "is not there"
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {os.strerror(error.errno or 0)}"
        )
        raise ConfigError(f"store.url: {name} {why}") from None
    try:
        info = json.loads(data) if len(data) <= FILE_BYTES_MAX else None
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise ConfigError(f"store.url: {name} is no JSON file with credentials")
    return _read(info, name)


def _read(info: dict[str, Any], name: str) -> Credentials:
    kind = info.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ConfigError(f"store.url: {name} has no type that is known; expected one of {', '.join(_FIELDS)}")
    missing = [field for field in _FIELDS[kind] if not info.get(field)]
    if missing:
        raise ConfigError(f"store.url: {name} lacks {', '.join(missing)}")
    try:
        credentials: Credentials = _make(kind, info)
    except Exception:  # noqa: BLE001 - the library fails in many ways on a field of another form
        hint = "its private_key, or another field, cannot be read" if kind == "service_account" else "a field is wrong"
        raise ConfigError(f"store.url: {name} cannot be used: {hint}; create the file anew") from None
    return credentials


def _make(kind: str, info: dict[str, Any]) -> Any:
    """Return the credentials of a file; the library's function for all types warns against itself."""
    match kind:
        case "service_account":
            return service_account.Credentials.from_service_account_info(info, scopes=[STORAGE_SCOPE])
        case "authorized_user":
            return user_credentials.Credentials.from_authorized_user_info(info)
        case "external_account_authorized_user":
            return external_account_authorized_user.Credentials.from_info(info)
        case "impersonated_service_account":
            make: Any = impersonated_credentials.Credentials.from_impersonated_service_account_info
            return make(info, scopes=list(SCOPES))
        case _:
            return _find_federation(info).from_info(info, scopes=SCOPES)


def _find_federation(info: dict[str, Any]) -> Any:
    """Return the class for the tokens of another provider, by where they come from."""
    source = info["credential_source"]
    if info["subject_token_type"] == "urn:ietf:params:aws:token-type:aws4_request":  # noqa: S105 - names a type
        return aws.Credentials
    is_program = isinstance(source, dict) and source.get("executable") is not None
    return pluggable.Credentials if is_program else identity_pool.Credentials
