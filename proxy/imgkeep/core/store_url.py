"""
Where a store is, read from its URL: `file:PATH` or `s3://BUCKET/PREFIX?region=&endpoint=&addressing=`.

Rules: nothing is guessed that the URL leaves open (`None` means: as the AWS tools would find it); a URL holds no secret
and may be shown; what cannot be honoured is a `ValueError` that says what was expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Addressing = Literal["auto", "path", "virtual"]

LATER: Final = ("gs", "az", "cloudinary")
"""Schemes that the design names and this version does not have."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()/=@:,+ -]{0,512}")
"""What S3 calls safe in names, and a few more that need no thought (Amazon S3 User Guide, "Naming objects")."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine; a relative path counts from the working directory."""

    path: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """
    A bucket of Amazon S3, or of what speaks like it.

    Attributes:
        prefix: What all names in the bucket begin with, without slashes at its ends; empty: nothing.
        region: `None`: as the AWS tools find it.
        endpoint: URL of an S3-compatible service; `None`: as the AWS tools find it, Amazon's in the end.
        addressing: Whether the bucket stands in the path or in the host name; `auto`: in the path for an endpoint that
            is not Amazon's.
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
        # Not quoted: an operator may have put credentials here.
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
            wrong = f"{name} stands there twice: " if name in parameters else _tell_parameter(name)
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


def _tell_parameter(name: str) -> str:
    """Return which parameter there is not; what does not look like a name is not quoted."""
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
    """Split a URL as it stands: the library would drop control characters, and finds wrong ports late."""
    if not url.isprintable():
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(expected) from None
    return parts
