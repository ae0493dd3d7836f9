"""
The client of one bucket of a remote service: `BucketClient`, and what its methods take and return.

Rules for an implementation:
- Every call ends: it has `timeout_s` without progress, and then it fails.
- A missing object is `None`. Every failure is a `BucketError` without secrets and without words of the service: a
  missing bucket, a refusal, and the page of a captive portal with status 200 are failures.
- A 200 alone proves no upload: the client compares a checksum that the service returns, or asks for the size.
- `path` is a path of the stored layout; the client adds the prefix of the bucket.
- A cancelled call leaves no request under way and no slot taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from imgkeep.storage.bucket.response_stream import ResponseStream
    from imgkeep.storage.interfaces import Draft


@dataclass(frozen=True, slots=True)
class ObjectFields:
    """The header fields that a service stores with an object; an empty one is left out."""

    content_type: str
    cache_control: str = ""
    content_disposition: str = ""


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """Size of an object in bytes, and the `etag` of its version: without quotes, and opaque."""

    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectResponse:
    """
    The response to a read.

    Attributes:
        size: Number of bytes of `stream`.
        etag: As in `ObjectStatus`.
        stream: The bytes. Its holder closes it.
    """

    size: int
    etag: str
    stream: ResponseStream


@dataclass(slots=True)
class Features:
    """
    What a service can do.

    Attributes:
        conditional_put: Whether it refuses to overwrite an object on request, so that one of several PUTs at once
            succeeds. A probe may find out.
        ranges: Whether it returns a part of an object.
        presign: Whether links to its objects can be signed; known after `check_settings` and `open`.
        public_prefix: Whether the objects can be public and the records not.
        cheap_lists: Whether a list costs about what another request costs. Those of some services are limited by the
            hour.
    """

    conditional_put: bool = False
    ranges: bool = True
    presign: bool = True
    public_prefix: bool = True
    cheap_lists: bool = True


CACHE_CONTROL: Final = "public, max-age=31536000, immutable"
"""Of objects and pictures, whose names are never given to other bytes that matter."""
PROBE_BYTES: Final = b"imgkeep was here to see whether this bucket works\n"
"""Always the same, and left in place: nodes that probe at the same time do not disturb each other."""

Check = tuple[str, "Callable[[], Awaitable[str | None]]"]
"""
A step of the live check: its name, and what raises a `StorageError` if it fails. It may return a note for the operator:
of what the service cannot do, and what imgkeep does instead.
"""


def range_field(start: int, end: int | None) -> str | None:
    """Return the value of the field `Range` for a part of an object; `None`: it is all of it."""
    return f"bytes={start}-{'' if end is None else end - 1}" if start or end is not None else None


def quarantine_path(name: str) -> str:
    """Return a new path in the quarantine for an object of this name."""
    return f"damaged/{name.rpartition('/')[2]}.{token_hex(4)}"


class BucketClient(Protocol):
    """
    The client of one bucket, container or folder of a remote service.

    Attributes:
        service: Name of the service in answers of the API: `s3`, `gcs`, `azure`, `cloudinary`.
        timeout_s: Timeout for a call that makes no progress.
        features: What the service can do, as far as is known.
    """

    service: str
    timeout_s: float
    features: Features

    @property
    def place(self) -> str:
        """Name of the bucket and its host in messages for operators, without secrets."""

    @property
    def answered_at(self) -> float:
        """Time of the last proper answer of the service, on the loop's clock; at first minus infinity."""

    async def open(self) -> None:
        """
        Make the client. It sends no request, except for credentials of a machine's role.

        Raises:
            ConfigError: The settings of the service on this machine are not usable, or a library is not installed.
        """

    async def check_settings(self) -> None:
        """Check that a client can be made, without any request; before `open`. Raises: ConfigError."""

    async def aclose(self) -> None:
        """Wait for work that a cancelled call has left, within `timeout_s`, and close all connections."""

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:
        """
        Open an object, from byte `start` up to and without `end`; `None`: it is not there.

        A service without ranges returns the whole object. With an `etag` a version that has another one is a failure.

        Raises:
            BucketError: The bucket cannot tell.
            Busy: Too many other requests are under way.
        """

    async def stat(self, path: str) -> ObjectStatus | None:
        """Ask for size and ETag of an object; `None`: it is not there. Raises as `get`."""

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:
        """
        Store a few bytes: whole or not at all, and verified.

        Raises:
            AlreadyThere: `only_if_absent`, the service has conditional PUT, and an object is there.
            BucketError: They are not stored.
            Busy: As `get`.
        """

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:
        """Store a finished draft of any size, read in pieces. Raises as `put_bytes`."""

    async def delete(self, path: str) -> None:
        """Delete an object, or nothing if it is not there. Raises as `get`."""

    async def quarantine(self, path: str, etag: str) -> None:
        """
        Move an object to `damaged/`, but only while it has this ETag. Another version stays, which is no failure.

        Raises:
            BucketError: It may still be there.
        """

    async def has_any(self, prefix: str) -> bool:
        """Tell whether the path of an object begins so: one request. Raises as `get`."""

    def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Yield path and size of everything below a folder, in the order of the paths. Raises as `get`."""

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link to an object, for HEAD or else for GET, and its life in seconds, `ttl_s` at most."""

    def public_url(self, path: str) -> str:
        """Return the public URL of an object, if the bucket is public. Only after `open`."""

    async def probe_features(self, path: str) -> None:
        """Find out what the service can do, with the object at `path`, which is there. Raises as `get`."""

    async def abort_uploads(self) -> int:
        """Abort the uploads below the prefix that a process of ours has left; return their number. Raises as `get`."""

    def live_checks(self, path: str, image: bytes) -> Sequence[Check]:
        """Return the checks of what only this service has, each with objects beside `path` that it deletes itself."""
