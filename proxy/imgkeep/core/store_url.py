"""
The URL of a store: `file:PATH`, `s3://BUCKET/PREFIX?region=&endpoint=&addressing=`, `gs://BUCKET/PREFIX`,
`az://CONTAINER/PREFIX?account=` or `cloudinary:FOLDER`.

Rules: the parser guesses nothing that the URL leaves open (`None` means: as the AWS tools find it); a URL contains no
secret, so messages may quote it; an invalid URL raises a `ValueError` that names the expected form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Addressing = Literal["auto", "path", "virtual"]

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_GCS_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_CONTAINER: Final = re.compile(r"(?=.{3,63}$)[a-z0-9](?:-?[a-z0-9])+|\$root|\$web")
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()/=@:,+ -]{0,512}")
"""Characters that S3 calls safe in names, and a few more (Amazon S3 User Guide, "Naming objects")."""
_CLOUDINARY_FOLDER: Final = re.compile(r"(?=.{1,120}$)(?!v[0-9]+(/|$))[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
"""
A public ID has 255 characters at most, and ours end with some 130. One that begins like a version would be read as one.
"""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine; a relative path counts from the working directory."""

    path: str


@dataclass(frozen=True, slots=True)
class S3Bucket:
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

    def __str__(self) -> str:
        return f"bucket {self.name} at {self.endpoint}" if self.endpoint else f"bucket {self.name}"


@dataclass(frozen=True, slots=True)
class GcsBucket:
    """A bucket of Google Cloud Storage. `prefix` as in `S3Bucket`."""

    name: str
    prefix: str = ""

    def path(self, path: str) -> str:
        """Return the name of an object in the bucket for a path of the stored layout."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def __str__(self) -> str:
        return f"bucket {self.name} of Google Cloud Storage"


@dataclass(frozen=True, slots=True)
class AzureContainer:
    """
    A container of Azure Blob Storage.

    Attributes:
        prefix: As in `S3Bucket`.
        account: Name of the storage account; `None`: as the environment says.
    """

    name: str
    prefix: str = ""
    account: str | None = None

    def path(self, path: str) -> str:
        """Return the name of a blob in the container for a path of the stored layout."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def __str__(self) -> str:
        return f"container {self.name} of Azure Blob Storage"


@dataclass(frozen=True, slots=True)
class CloudinaryFolder:
    """A folder of a Cloudinary product environment; `prefix` is its path, not empty, without slashes at its ends."""

    prefix: str

    def path(self, path: str) -> str:
        """Return the name of an asset for a path of the stored layout."""
        return f"{self.prefix}/{path}"

    def __str__(self) -> str:
        return f"folder {self.prefix} of Cloudinary"


RemotePlace = S3Bucket | GcsBucket | AzureContainer | CloudinaryFolder
StorePlace = Folder | RemotePlace

EXPECTED: Final = (
    "expected file:PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or cloudinary:FOLDER"
)


def read_store_url(url: str) -> StorePlace:
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
    if scheme == "gs":
        return _read_gcs(url)
    if scheme == "az":
        return _read_azure(url)
    if scheme == "cloudinary":
        return _read_cloudinary(rest)
    raise ValueError(EXPECTED)


def _read_folder(path: str) -> Folder:
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or path.startswith("//") or "\0" in path:
        raise ValueError("expected file:PATH, relative or absolute")
    return Folder(path)


def _read_bucket(url: str) -> S3Bucket:
    parts = _split(url, "expected s3://BUCKET/PREFIX")
    if not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
        # The message does not quote the URL: an operator may have put credentials there.
        raise ValueError(
            "expected s3://BUCKET/PREFIX, where the bucket has a name of 3 letters, digits, dots, hyphens or more; "
            "credentials come from the environment or an AWS profile"
        )
    prefix = _read_prefix(parts.path)
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in {"region", "endpoint", "addressing"} or name in parameters:
            wrong = f"{name} is given twice: " if name in parameters else _describe_unknown(name)
            raise ValueError(f"{wrong}behind the ? expected region=, endpoint= and addressing=, each once")
        parameters[name] = value
    addressing = parameters.get("addressing", "").lower() or "auto"
    if addressing not in {"auto", "path", "virtual"}:
        raise ValueError("addressing: expected path, virtual or auto")
    return S3Bucket(
        parts.netloc,
        prefix,
        _read_region(parameters.get("region", "")),
        _read_endpoint(parameters.get("endpoint", "")),
        cast("Addressing", addressing),
    )


def _read_gcs(url: str) -> GcsBucket:
    expected = "expected gs://BUCKET/PREFIX; credentials come from the environment, as Google's tools find them"
    parts = _split(url, expected)
    if not _GCS_BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise ValueError(expected)
    return GcsBucket(parts.netloc, _read_prefix(parts.path))


def _read_azure(url: str) -> AzureContainer:
    expected = (
        "expected az://CONTAINER/PREFIX, and ?account=NAME where the environment names no account; credentials come "
        "from the environment, as Azure's tools find them"
    )
    parts = _split(url, expected)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    account = dict(parameters).get("account", "")
    if (
        not _CONTAINER.fullmatch(parts.netloc)
        or parts.fragment
        or [name for name, _ in parameters]
        not in (
            [],
            ["account"],
        )
    ):
        raise ValueError(expected)
    if account and not _ACCOUNT.fullmatch(account):
        raise ValueError("account: expected the name of a storage account, 3 to 24 lower-case letters and digits")
    return AzureContainer(parts.netloc, _read_prefix(parts.path), account or None)


def _read_cloudinary(rest: str) -> CloudinaryFolder:
    folder = rest.strip("/")
    if "@" in rest:
        # The message does not quote the URL: that is the form of CLOUDINARY_URL, with its secret.
        raise ValueError("expected cloudinary:FOLDER; the account comes from the environment variable CLOUDINARY_URL")
    if not _CLOUDINARY_FOLDER.fullmatch(folder) or any(part in {".", ".."} for part in folder.split("/")):
        raise ValueError(
            "expected cloudinary:FOLDER, where the folder has letters, digits, dots, hyphens, underscores and single "
            "slashes, and does not begin with a version, like v1"
        )
    return CloudinaryFolder(folder)


def _read_prefix(path: str) -> str:
    prefix = unquote(path).strip("/")
    if not _PREFIX.fullmatch(prefix) or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
        raise ValueError("the prefix has a character that not every store takes, or an empty part")
    return prefix


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
