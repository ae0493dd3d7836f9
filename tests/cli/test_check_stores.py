"""`imgkeep check` reads the settings of a store's service on this machine, without the network and without secrets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.program import run_here

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "c2VjcmV0LXNlY3JldC1zZWNy"
AZURE = f"AccountName=acme;AccountKey={SECRET};EndpointSuffix=core.windows.net"
GOOD = {
    "gs": {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"},
    "az": {"AZURE_STORAGE_CONNECTION_STRING": AZURE},
    "cloudinary": {"CLOUDINARY_URL": f"cloudinary://123:{SECRET}@acme"},
}
URLS = {"gs": "gs://images", "az": "az://images", "cloudinary": "cloudinary:images"}


@pytest.mark.parametrize("kind", GOOD)
async def test_settings_of_a_service_are_valid(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"store__url": URLS[kind], **GOOD[kind]}
    status, out, err = await run_here(tmp_path / "data", "check", **settings)
    assert (status, out.splitlines()[0], err) == (0, "configuration: valid", "")


KEY_FILE = {"type": "service_account", "private_key": SECRET, "client_email": "a@acme.iam.gserviceaccount.com"}
BAD = {
    "a key file of Google that is not there": ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "nowhere.json"}, "GOOGLE_APP"),
    "a key file of Google without its key": ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "key.json"}, "GOOGLE_APP"),
    "an emulator that is none": ("gs", {"STORAGE_EMULATOR_HOST": f"ftp://a:{SECRET}@b"}, "STORAGE_EMULATOR_HOST"),
    "a connection string without an account": (
        "az",
        {"AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={SECRET}"},
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    "a key that is no Base64": (
        "az",
        {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acme;AccountKey=%{SECRET}"},
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    "no account of Azure": ("az", {}, "AZURE_STORAGE_"),
    "no account of Cloudinary": ("cloudinary", {}, "CLOUDINARY_URL"),
    "an account of Cloudinary without its name": (
        "cloudinary",
        {"CLOUDINARY_URL": f"cloudinary://123:{SECRET}"},
        "CLOUDINARY_URL",
    ),
    "an account of Cloudinary of another form": (
        "cloudinary",
        {"CLOUDINARY_URL": f"https://123:{SECRET}@acme"},
        "CLOUDINARY_URL",
    ),
}


@pytest.mark.parametrize(("kind", "variables", "named"), BAD.values(), ids=BAD)
async def test_wrong_setting_of_a_service_is_named_and_not_quoted(
    kind: str, variables: dict[str, str], named: str, tmp_path: Path
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(KEY_FILE))
    settings: dict[str, Any] = {"store__url": URLS[kind], **variables}
    for command in ("check", "reindex"):
        status, out, err = await run_here(tmp_path / "data", command, **settings)
        assert (status, out, named in err, SECRET in err) == (2, "", True, False), err
