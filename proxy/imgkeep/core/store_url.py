"""
The URL of a store: `file:PATH`, `s3://BUCKET/PREFIX?region=&endpoint=&addressing=`, `gs://BUCKET/PREFIX`,
`az://CONTAINER/PREFIX?account=` or `cloudinary:FOLDER`.

Rules: the parser guesses nothing that the URL leaves open (`None` means: as the tools of the service find it); a URL
contains no secret, so messages may quote it; an invalid URL raises a `ValueError` that names the expected form, and
quotes nothing, because an operator may have put credentials there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Addressing = Literal["auto", "path", "virtual"]

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_GCS_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
"""Google Cloud Storage, "Bucket naming requirements"; only a name with dots may have more than 63 characters."""
_CONTAINER: Final = re.compile(r"(?=.{3,63}$)[a-z0-9](?:-?[a-z0-9])+")
"""
Azure, "Naming and Referencing Containers, Blobs, and Metadata". Two special containers are left out: names in `$root`
have no slashes, and a website shows all of `$web`, records too.
"""
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()/=@:,+ -]{0,512}")
"""Characters that S3 calls safe in names, and a few more (Amazon S3 User Guide, "Naming objects")."""
_FOLDER: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
"""Characters that stand in a delivery URL as they are."""
FOLDER_CHARS_MAX: Final = 128
"""Maximum length of a folder of Cloudinary: a public ID has 255 characters at most, and 90 of them are ours."""


class _Prefixed:
    """A place whose objects have a common prefix."""

    __slots__ = ()
    prefix: str

    def path(self, path: str) -> str:
        """Return the name of an object for a path of the stored layout."""
        return f"{self.prefix}/{path}" if self.prefix else path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine; a relative path counts from the working directory."""

    path: str


@dataclass(frozen=True, slots=True)
class S3Bucket(_Prefixed):
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

    def __str__(self) -> str:
        return f"bucket {self.name} at {self.endpoint}" if self.endpoint else f"bucket {self.name}"


@dataclass(frozen=True, slots=True)
class GcsBucket(_Prefixed):
    """A bucket of Google Cloud Storage. `prefix` as in `S3Bucket`."""

    name: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"bucket {self.name} of Google Cloud Storage"


@dataclass(frozen=True, slots=True)
class AzureContainer(_Prefixed):
    """
    A container of Azure Blob Storage.

    Attributes:
        prefix: As in `S3Bucket`.
        account: Name of the storage account; `None`: as the environment says.
    """

    name: str
    prefix: str = ""
    account: str | None = None

    def __str__(self) -> str:
        return f"container {self.name} of Azure Blob Storage"


@dataclass(frozen=True, slots=True)
class CloudinaryFolder(_Prefixed):
    """A folder of a Cloudinary product environment. `prefix` is its path; empty: the folder above all others."""

    prefix: str = ""

    def __str__(self) -> str:
        return f"folder {self.prefix} of Cloudinary" if self.prefix else "Cloudinary"


RemotePlace = S3Bucket | GcsBucket | AzureContainer | CloudinaryFolder
StorePlace = Folder | RemotePlace

EXPECTED: Final = (
    "expected file:PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or cloudinary:FOLDER"
)
_EXPECTED_S3: Final = (
    "expected s3://BUCKET/PREFIX, where the bucket has a name of 3 letters, digits, dots, hyphens or more; "
    "credentials come from the environment or an AWS profile"
)
_EXPECTED_GCS: Final = (
    "expected gs://BUCKET/PREFIX, where the bucket has a name of 3 lower-case letters, digits, dots, hyphens, "
    "underscores or more; credentials come from the environment, as Google's tools find them"
)
_EXPECTED_AZURE: Final = (
    "expected az://CONTAINER/PREFIX, where the container has a name of 3 to 63 lower-case letters, digits and single "
    "hyphens, with ?account=NAME unless the environment names an account; credentials come from the environment, as "
    "Azure's tools find them"
)
_EXPECTED_CLOUDINARY: Final = (
    "expected cloudinary:FOLDER, where the folder has letters, digits, dots, hyphens, underscores and slashes, "
    f"{FOLDER_CHARS_MAX} at most; the credentials come from CLOUDINARY_URL in the environment"
)


def read_store_url(url: str) -> StorePlace:
    """
    Read the URL of a store.

    Raises:
        ValueError: Another scheme, no path or bucket, a parameter that is unknown or malformed.
    """
    scheme, _, rest = url.partition(":")
    match scheme.lower():
        case "file":
            return _read_folder(rest)
        case "s3":
            return _read_s3(url)
        case "gs":
            return _read_gcs(url)
        case "az":
            return _read_azure(url)
        case "cloudinary":
            return _read_cloudinary(rest)
    raise ValueError(EXPECTED)


def _read_folder(path: str) -> Folder:
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or path.startswith("//") or "\0" in path:
        raise ValueError("expected file:PATH, relative or absolute")
    return Folder(path)


def _read_s3(url: str) -> S3Bucket:
    parts = _read_parts(url, _BUCKET, _EXPECTED_S3)
    parameters = _read_parameters(parts.query, ("region", "endpoint", "addressing"), "")
    addressing = parameters.get("addressing", "").lower() or "auto"
    if addressing not in {"auto", "path", "virtual"}:
        raise ValueError("addressing: expected path, virtual or auto")
    return S3Bucket(
        parts.netloc,
        _read_prefix(parts.path),
        _read_region(parameters.get("region", "")),
        _read_endpoint(parameters.get("endpoint", "")),
        cast("Addressing", addressing),
    )


def _read_gcs(url: str) -> GcsBucket:
    parts = _read_parts(url, _GCS_BUCKET, _EXPECTED_GCS)
    _read_parameters(parts.query, (), "; STORAGE_EMULATOR_HOST in the environment names another server")
    return GcsBucket(parts.netloc, _read_prefix(parts.path))


def _read_azure(url: str) -> AzureContainer:
    parts = _read_parts(url, _CONTAINER, _EXPECTED_AZURE)
    remedy = "; AZURE_STORAGE_CONNECTION_STRING in the environment names another server, by its BlobEndpoint"
    account = _read_parameters(parts.query, ("account",), remedy).get("account", "")
    if account and not _ACCOUNT.fullmatch(account):
        raise ValueError("account: expected the name of a storage account, 3 to 24 lower-case letters and digits")
    prefix = _read_prefix(parts.path)
    if any(part.endswith(".") for part in prefix.split("/")):
        raise ValueError("a part of the prefix ends with a dot, which Azure does not take")
    return AzureContainer(parts.netloc, prefix, account or None)


def _read_cloudinary(folder: str) -> CloudinaryFolder:
    # `cloudinary://KEY:SECRET@CLOUD` is the value of CLOUDINARY_URL, and no folder.
    folder = folder if folder.startswith("//") else folder.strip("/")
    if not folder:
        return CloudinaryFolder()
    is_relative = any(part in {".", ".."} for part in folder.split("/"))
    if is_relative or len(folder) > FOLDER_CHARS_MAX or not _FOLDER.fullmatch(folder):
        raise ValueError(_EXPECTED_CLOUDINARY)
    return CloudinaryFolder(folder)


def _read_parts(url: str, name: re.Pattern[str], expected: str) -> SplitResult:
    """Split a URL whose authority is the name of a bucket."""
    parts = _split(url, expected)
    if not name.fullmatch(parts.netloc) or parts.fragment:
        raise ValueError(expected)
    return parts


def _read_parameters(query: str, names: Sequence[str], remedy: str) -> Mapping[str, str]:
    """Return the parameters of a URL: those of `names`, each at most once. `remedy`: what there is instead."""
    parameters: dict[str, str] = {}
    *others, last = [f"{name}=" for name in names] or ["nothing"]
    wanted = f"{', '.join(others)} and {last}, each once" if others else last
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in names or name in parameters:
            wrong = f"{name} is given twice: " if name in parameters else _describe_unknown(name)
            raise ValueError(f"{wrong}behind the ? expected {wanted}{remedy}")
        parameters[name] = value
    return parameters


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
