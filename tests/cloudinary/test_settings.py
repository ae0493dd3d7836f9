"""`CLOUDINARY_URL`, and the folder in `store.url`: mistakes are named without a request, and no secret is printed."""

from __future__ import annotations

from hashlib import sha1
from typing import TYPE_CHECKING

import pytest

from imgkeep.bootstrap.bucket_clients import make_client
from imgkeep.config import ConfigError
from imgkeep.core.layout import OBJECTS, object_path
from imgkeep.core.store_url import CloudinaryFolder
from imgkeep.storage.cloudinary import CloudinaryClient
from imgkeep.storage.cloudinary.settings import read_account
from imgkeep.storage.cloudinary.signing import sign, signed
from tests.support.program import run_here
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT = "cloudinary://123456789012345:a-Secret_of-mine@demo"
API = "https://api.cloudinary.com"
NAME = f"{'ab' * 32}.png"

GOOD = {
    "the usual": ("", API, "https://res.cloudinary.com/demo"),
    "another region": ("?upload_prefix=https://api-eu.cloudinary.com/", "https://api-eu.cloudinary.com", None),
    "a host of its own": ("/images.example.com", API, "https://images.example.com"),
    "a host as a parameter": (
        "?private_cdn=true&secure_distribution=images.example.com",
        API,
        "https://images.example.com",
    ),
    "a private CDN": ("?private_cdn=true", API, "https://demo-res.cloudinary.com"),
    "a shared host": ("?secure_distribution=images.example.com", API, "https://images.example.com/demo"),
    "no TLS": ("?secure=false&cname=127.0.0.1:8080", API, "http://127.0.0.1:8080/demo"),
    "parameters for other programs": ("?analytics=false&api_proxy=http://proxy", API, None),
}


@pytest.mark.parametrize(("rest", "api_url", "delivery_url"), GOOD.values(), ids=GOOD)
def test_account_is_read_as_by_their_library(rest: str, api_url: str, delivery_url: str | None) -> None:
    account = read_account({"CLOUDINARY_URL": ACCOUNT + rest})
    assert (account.cloud, account.key, account.secret) == ("demo", "123456789012345", "a-Secret_of-mine")
    assert account.api_url == api_url
    assert account.delivery_url == delivery_url or delivery_url is None
    assert account.secret not in repr(account)


BAD = {
    "not set": ("", "CLOUDINARY_URL is not set"),
    "its own name": (f"CLOUDINARY_URL={ACCOUNT}", "begins with its own name"),
    "another scheme": (ACCOUNT.replace("cloudinary:", "https:"), "expected cloudinary://API_KEY"),
    "no secret": ("cloudinary://123456789012345@demo", "expected cloudinary://API_KEY"),
    "no cloud": ("cloudinary://123456789012345:a-Secret_of-mine@", "expected cloudinary://API_KEY"),
    "placeholders": ("cloudinary://<your_api_key>:<your_api_secret>@demo", "expected cloudinary://API_KEY"),
    "a line break": (f"{ACCOUNT}\n", "expected cloudinary://API_KEY"),
    "a port": (f"{ACCOUNT}:port", "expected cloudinary://API_KEY"),
    "a fragment": (f"{ACCOUNT}#a", "expected cloudinary://API_KEY"),
    "broken brackets": (f"{ACCOUNT}[", "expected cloudinary://API_KEY"),
    "an API without scheme": (f"{ACCOUNT}?upload_prefix=api-eu.cloudinary.com", "upload_prefix: expected a URL"),
    "an API with a user": (f"{ACCOUNT}?upload_prefix=https://a:b@host", "upload_prefix: expected a URL"),
    "a host that is none": (f"{ACCOUNT}/images.example.com/path", "secure_distribution: expected a host"),
    "a name that is none": (f"{ACCOUNT}?secure=false&cname=a%20b", "cname: expected a host"),
    "a flag that is none": (f"{ACCOUNT}?private_cdn=perhaps", "private_cdn: expected true or false"),
}


@table(("value", "message"), BAD.values(), ids=BAD)
def test_mistake_in_the_variable_is_named_without_its_value(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_account({"CLOUDINARY_URL": value})
    assert "CLOUDINARY_URL" in str(caught.value)
    assert "Secret" not in str(caught.value).replace("API_SECRET", "")


@pytest.mark.parametrize("prefix", ["", "v1", "v2/images"])
async def test_folder_that_reads_as_a_version_is_refused(prefix: str) -> None:
    client = CloudinaryClient(CloudinaryFolder(prefix), environment={"CLOUDINARY_URL": ACCOUNT})
    for check in (client.check_settings, client.open):
        with pytest.raises(ConfigError, match="expected cloudinary:FOLDER"):
            await check()


async def test_check_names_the_missing_variable(tmp_path: Path) -> None:
    status, out, err = await run_here(tmp_path, "check", store__url="cloudinary:images")
    assert (status, out) == (2, "")
    assert "CLOUDINARY_URL is not set" in err


async def test_public_urls_have_a_version_before_the_stored_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDINARY_URL", ACCOUNT)
    client = make_client(CloudinaryFolder("images"), timeout_s=1)
    await client.check_settings()
    await client.open()
    assert client.service == "cloudinary"
    assert client.place == "folder images of Cloudinary"
    assert client.public_url(object_path(NAME)) == (
        f"https://res.cloudinary.com/demo/image/upload/v1/images/v1/objects/ab/{NAME}"
    )
    assert client.public_url(object_path(NAME.replace("png", "apng"))).startswith(
        "https://res.cloudinary.com/demo/raw/upload/v1/images/v1/objects/ab/"
    )
    assert client.public_url(OBJECTS) == "https://res.cloudinary.com/demo/image/upload/v1/images/v1/objects"
    await client.aclose()


def test_signed_text_is_that_of_the_documentation() -> None:
    # "How to generate a Cloudinary signature on my own?" gives this text and its SHA-1.
    text = "public_id=sample_image&timestamp=1315060510abcd"
    assert sha1(text.encode()).hexdigest() == "b4ad47fb4e25c7bf5f92a20089f9db59bc302313"
    parameters = signed({"public_id": "sample_image"}, key="1234", secret="abcd", timestamp=1315060510)
    assert parameters == {
        "public_id": "sample_image",
        "timestamp": "1315060510",
        "api_key": "1234",
        "signature": "e3c44b54e67a3ecc918f5d7236ca5faa36250ea8a8cd6cbabfd2d6bb2453acac",  # its SHA-256
    }


def test_value_cannot_pass_for_another_parameter() -> None:
    assert sign({"a": "b&c=d"}, "s") != sign({"a": "b", "c": "d"}, "s")
