"""
The URL of a store: `file:PATH` or `s3://BUCKET/PREFIX?region=&endpoint=&addressing=`.

Rules: the parser guesses nothing that the URL leaves open (`None` means: as the AWS tools find it); a URL contains no
secret, so messages may quote it; an invalid URL raises a `ValueError` that names the expected form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Addressing = Literal["auto", "path", "virtual"]

LATER: Final = ("gs", "az", "cloudinary")
"""Schemes of later versions."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()/=@:,+ -]{0,512}")
"""Characters that S3 calls safe in names, and a few more (Amazon S3 User Guide, "Naming objects")."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine; a relative path counts from the working directory."""

    path: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """
    A bucket of Amazon S3 or of a compatible service.

    Attributes:
        prefix: Prefix of all names in the bucket, without slashes at its ends; empty: none.
        region: Name of the region; `None`: as the AWS tools find it.
        endpoint: URL of an S3-compatible service; `None`: as the AWS tools find it, by default Amazon's.
        addressing: Whether the bucket is in the path or in the host name; `auto`: in the path if the endpoint is not
            Amazon's.
    """

    name: str
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    addressing: Addressing = "auto"

    def path(self, path: str) -> str:
        """Return the name of an object in the bucket for a path of the stored layout."""
        return f"{self.prefix}/{path}" if self.prefix else path


def read_store_url(url: str) -> Folder | Bucket:
    """
    Read the URL of a store.

    Raises:
        ValueError: Another scheme, no path or bucket, a parameter that is unknown or malformed.
    """
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "file":
        return _read_folder(rest)
    if scheme == "s3":
        return _read_bucket(url)
    later = "this version has no such store: " if scheme in LATER else ""
    raise ValueError(f"{later}expected file:PATH or s3://BUCKET/PREFIX")


def _read_folder(path: str) -> Folder:
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or path.startswith("//") or "\0" in path:
        raise ValueError("expected file:PATH, relative or absolute")
    return Folder(path)


def _read_bucket(url: str) -> Bucket:
    parts = _split(url, "expected s3://BUCKET/PREFIX")
    if not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
        # The message does not quote the URL: an operator may have put credentials there.
        raise ValueError(
            "expected s3://BUCKET/PREFIX, where the bucket has a name of 3 letters, digits, dots, hyphens or more; "
            "credentials come from the environment or an AWS profile"
        )
    prefix = unquote(parts.path).strip("/")
    if not _PREFIX.fullmatch(prefix) or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
        raise ValueError("the prefix has a character that not every store takes, or an empty part")
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in {"region", "endpoint", "addressing"} or name in parameters:
            wrong = f"{name} is given twice: " if name in parameters else _describe_unknown(name)
            raise ValueError(f"{wrong}behind the ? expected region=, endpoint= and addressing=, each once")
        parameters[name] = value
    addressing = parameters.get("addressing", "").lower() or "auto"
    if addressing not in {"auto", "path", "virtual"}:
        raise ValueError("addressing: expected path, virtual or auto")
    return Bucket(
        parts.netloc,
        prefix,
        _read_region(parameters.get("region", "")),
        _read_endpoint(parameters.get("endpoint", "")),
        cast("Addressing", addressing),
    )


def _describe_unknown(name: str) -> str:
    """Return a message about an unknown parameter; empty for a text that does not look like a name."""
    return f"there is no parameter {name}: " if re.fullmatch(r"[a-z_]{1,32}", name, re.IGNORECASE) else ""


def _read_region(region: str) -> str | None:
    if region and not _REGION.fullmatch(region):
        raise ValueError("region: expected a name like eu-central-1")
    return region or None


def _read_endpoint(endpoint: str) -> str | None:
    if not endpoint:
        return None
    expected = "endpoint: expected a URL with its scheme, like https://s3.example.com"
    parts = _split(endpoint, expected)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError(expected)
    if parts.query or parts.fragment:
        raise ValueError(expected)
    return endpoint.rstrip("/")


def _split(url: str, expected: str) -> SplitResult:
    """Split a URL strictly: the library would drop control characters, and checks the port late."""
    if not url.isprintable():
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(expected) from None
    return parts
