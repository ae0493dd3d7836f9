"""
The account, from the variable `CLOUDINARY_URL`, which Cloudinary's console shows for copying.

    cloudinary://API_KEY:API_SECRET@CLOUD_NAME[/SECURE_DISTRIBUTION][?PARAMETERS]

Parameters as in Cloudinary's own library: `upload_prefix` (URL of the API), `secure_distribution` (host of delivery
URLs), `private_cdn` (whether that host serves this cloud alone), `secure` (whether delivery URLs are https), `cname`
(their host otherwise). The parser ignores others, as the library does. No message quotes a value.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from imgkeep.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "CLOUDINARY_URL"
API_URL: Final = "https://api.cloudinary.com"
SHARED_HOST: Final = "res.cloudinary.com"
"""Host of the delivery URLs of all clouds that have no other; the cloud's name begins their paths."""

_FORM: Final = (
    f"{VARIABLE}: expected cloudinary://API_KEY:API_SECRET@CLOUD_NAME, as the page of API keys of Cloudinary's console "
    "shows it"
)
_KEY: Final = re.compile(r"[A-Za-z0-9]{1,64}")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CLOUD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class CloudinaryAccount:
    """
    A product environment.

    Attributes:
        api_url: URL of its API, without a slash at its end.
        delivery_url: URL before the paths of its delivery URLs, without a slash at its end.
    """

    cloud: str
    key: str
    secret: str
    api_url: str
    delivery_url: str

    def __repr__(self) -> str:
        return f"CloudinaryAccount({self.cloud!r})"  # no secret gets into a traceback


def read_account(environment: Mapping[str, str] | None = None) -> CloudinaryAccount:
    """
    Read the account from the environment.

    Raises:
        ConfigError: The variable is missing or malformed.
    """
    # As with the tools of AWS: the service's own variable, which no setting of imgkeep repeats.
    value = (os.environ if environment is None else environment).get(VARIABLE, "")  # noqa: TID251
    if not value:
        raise ConfigError(
            f"{VARIABLE} is not set: store.url names Cloudinary, and the account comes from this variable"
        )
    if value.startswith(f"{VARIABLE}="):
        raise ConfigError(f"{VARIABLE}: its value begins with its own name: remove {VARIABLE}= from the value")
    parts = _split(value)
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    cloud = parts.netloc.rpartition("@")[2]
    if not (
        parts.scheme == "cloudinary"
        and _KEY.fullmatch(parts.username or "")
        and _SECRET.fullmatch(parts.password or "")
        and _CLOUD.fullmatch(cloud)
        and not parts.fragment
    ):
        raise ConfigError(_FORM)
    assert parts.username is not None
    assert parts.password is not None
    if distribution := parts.path.strip("/"):
        parameters = {"private_cdn": "true", "secure_distribution": distribution, **parameters}
    return CloudinaryAccount(
        cloud, parts.username, parts.password, _read_api_url(parameters), _read_delivery_url(cloud, parameters)
    )


def _split(value: str) -> SplitResult:
    if not value.isprintable() or " " in value:
        raise ConfigError(_FORM)
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ConfigError(_FORM) from None
    return parts


def _read_api_url(parameters: Mapping[str, str]) -> str:
    url = parameters.get("upload_prefix", API_URL).rstrip("/")
    scheme, _, host = url.partition("://")
    if scheme not in {"http", "https"} or not _HOST.fullmatch(host):
        raise ConfigError(f"{VARIABLE}: upload_prefix: expected a URL like https://api-eu.cloudinary.com")
    return url


def _read_delivery_url(cloud: str, parameters: Mapping[str, str]) -> str:
    secure = _read_flag(parameters, "secure", default=True)
    private = _read_flag(parameters, "private_cdn", default=False)
    name = "secure_distribution" if secure else "cname"
    host = parameters.get(name) or (f"{cloud}-{SHARED_HOST}" if private else SHARED_HOST)
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{VARIABLE}: {name}: expected a host like images.example.com")
    url = f"{'https' if secure else 'http'}://{host}"
    return url if private and host != SHARED_HOST else f"{url}/{cloud}"


def _read_flag(parameters: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = parameters.get(name, "true" if default else "false").lower()
    if value not in {"true", "1", "false", "0"}:
        raise ConfigError(f"{VARIABLE}: {name}: expected true or false")
    return value in {"true", "1"}
