"""The nouns of imgkeep: source, image format, record. Times are aware UTC, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from datetime import datetime

    from imgkeep.core.picture_facts import PictureFacts

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Key = NewType("Key", str)
"""Lower-case hex SHA-256 of an identity."""

Digest = NewType("Digest", str)
"""Lower-case hex SHA-256 of the bytes of an object."""


class Format(Enum):
    """An image format that imgkeep stores: media type, as registered with IANA, and file name extension."""

    PNG = ("image/png", "png")
    APNG = ("image/apng", "apng")
    JPEG = ("image/jpeg", "jpg")
    GIF = ("image/gif", "gif")
    WEBP = ("image/webp", "webp")
    AVIF = ("image/avif", "avif")
    HEIC = ("image/heic", "heic")
    HEIF = ("image/heif", "heif")
    JXL = ("image/jxl", "jxl")
    SVG = ("image/svg+xml", "svg")
    BMP = ("image/bmp", "bmp")
    ICO = ("image/x-icon", "ico")
    CUR = ("image/x-icon", "cur")
    """A cursor: browsers know no media type of its own, and desktops recognise it by its extension."""
    TIFF = ("image/tiff", "tiff")

    def __init__(self, media_type: str, extension: str) -> None:
        self.media_type = media_type
        self.extension = extension


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Width and height in pixels, as the header of the file states them. `picture`: what its pixels tell, if known."""

    width: int
    height: int
    picture: PictureFacts | None = field(default=None, compare=False)

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Source:
    """
    An absolute http(s) URL, parsed strictly. Only `core.source_url.read_source` makes one.

    Attributes:
        scheme: `http` or `https`.
        host: Lower-case ASCII: a name without trailing dot (IDNA applied, RFC 5891), a dotted quad, or an IPv6 address
            without brackets in its shortest spelling (RFC 5952).
        port: Port number; the scheme's default if the URL has none.
        target: Path and query in the form of a request line (RFC 9112, 3.2.1): begins with `/`, percent-encoded ASCII.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Return host and port as in a URL, without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL. It is a credential: never write it to a log, an error or a metric."""
        return f"{self.scheme}://{self.authority}{self.target}"

    def __repr__(self) -> str:
        return f"<Source at {self.host}>"


@dataclass(frozen=True, slots=True)
class Client:
    """
    The client that causes a fetch, as the limits on shared resources see it.

    Attributes:
        networks: Networks that count as one client, the narrowest first (`core.ip_ranges.client_networks`).
        own: Whether it is the API, a job, or a client with an API token: these have no limits and reserved capacity.
        loopback: Whether the request came from this machine, or through a local proxy that does not name its clients:
            all of these are one client, and one client's share would be too little for them.
    """

    networks: tuple[str, ...] = ()
    own: bool = False
    loopback: bool = False


OWN: Final = Client(own=True)
"""The API, the jobs, and commands that save."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """
    The facts that a source URL contains.

    Attributes:
        identity: The URL without the parts that only grant permission, in canonical form.
        key: SHA-256 of the identity.
        provider: The service behind the link, if a provider rule names it.
        temporary: Whether the link expires.
        expires_at: When the link expires at the latest, if it says so.
        scheme: The signing scheme, if the engine recognised one.
        enforced: Whether an image by this link proves that the signature is valid: its services answer an invalid
            signature with an error, never with an image. Also true if the identity leaves out no signature.
        places: Host and path, without port, of the other URLs that the link names: its canonical host and path, and
            every link inside it.
        permission: Whether the identity leaves out a part of the link that grants access, such as a signature.
        enforced_by_host: Whether `enforced` comes from the host, and not from the shape of the signature alone, which a
            stranger can write for any host.
    """

    identity: str
    key: Key
    provider: str | None = None
    temporary: bool = False
    expires_at: datetime | None = None
    scheme: str | None = None
    enforced: bool = True
    permission: bool = False
    places: tuple[str, ...] = ()
    enforced_by_host: bool = False

    def is_fresh(self, now: datetime) -> bool:
        """Return whether this is a temporary link with a signature that has not expired."""
        return self.temporary and self.scheme is not None and (self.expires_at is None or now < self.expires_at)

    def may_have_expired(self, now: datetime) -> bool:
        """Return whether an origin that refuses the link may do so because it has expired."""
        past = self.expires_at is not None and self.expires_at <= now
        return self.scheme is not None or (self.temporary and past)


@dataclass(frozen=True, slots=True)
class Validator:
    """The origin's validators of an image (RFC 9110, 8.8): `ETag` and `Last-Modified`, unchanged."""

    etag: str | None
    modified: str | None


class Doubt(Enum):
    """A reason why another link of the key may lead to other bytes (`core/confirmation.py`)."""

    UNSIGNED = "unsigned"
    """The link that brought the image has no signature."""
    SIGNATURE = "signature"
    """The origin may not check the signature of the link that brought the image."""
    SCHEME = "scheme"
    """
    The signature of the link has the shape of a scheme that its services always check, but imgkeep does not know that
    of the host: an origin without this scheme may have ignored it.
    """
    ENDED = "ended"
    """The link that brought the image was past its own expiry."""
    PLAINTEXT = "plaintext"
    """A part of the fetch was not encrypted."""
    CONTESTED = "contested"
    """Another link of the key brought other bytes, and has a separate record."""
    SPLIT = "split"
    """At this origin the signature names the image: the record counts only for the link that brought it."""
    INCOMPLETE = "incomplete"
    """The image is incomplete by its format, not by its framing: imgkeep refetches it (`core/refetch_rules.py`)."""


class Standing(Enum):
    """The trust in a stored image for links other than the one that brought it."""

    CONFIRMED = "confirmed"
    PLAIN = "plain"
    PROVISIONAL = "provisional"
    SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Refetches:
    """
    The refetches of an incomplete image.

    Attributes:
        tries: Number of refetches, failures included.
        equal: Number of consecutive refetches that brought the same bytes.
        since: When these bytes first came.
        last_at: Time of the last refetch.
    """

    tries: int
    equal: int
    since: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Provenance:
    """
    The facts about the source URL of a stored image; empty for an uploaded image.

    Attributes:
        host: Host of the URL, for operators who search the stored images.
        provider: The service behind the link, if a provider rule names it.
        temporary: Whether the link expires.
        expires_at: When the link expires, if it says so.
    """

    host: str = ""
    provider: str | None = None
    temporary: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """
    The trust in a stored image for all links of its key.

    Attributes:
        doubts: Reasons why it may not count for every link; none: it is confirmed.
        brought_by: Fingerprint of the exact link that brought it, if there are doubts.
        refetches: Its refetches, if it was incomplete. Without the doubt `incomplete` they have confirmed it.
    """

    doubts: frozenset[Doubt] = frozenset()
    brought_by: str = ""
    refetches: Refetches | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """
    The facts under a key. Several records may point at one object.

    Attributes:
        etag: Strong validator (RFC 9110, 8.8.3), quotes included: random, because a fill sends it before the last byte.
        stored_at: Time of the fetch, to the second.
        validator: The origin's validators, if it sent any.
        waits_at: The node in whose fallback alone it is; empty: this one. `None`: in the primary. Not stored.
    """

    key: Key
    identity: str
    digest: Digest
    format: Format
    size: int
    pixel_size: PixelSize | None
    etag: str
    stored_at: datetime
    provenance: Provenance = Provenance()
    validator: Validator | None = None
    trust: Trust = Trust()
    waits_at: str | None = None

    @property
    def object_name(self) -> str:
        """Return `<digest>.<ext>`: the last part of the permanent URL and of the object's path in a store."""
        return f"{self.digest}.{self.format.extension}"

    @property
    def picture(self) -> PictureFacts | None:
        return self.pixel_size.picture if self.pixel_size else None

    @property
    def pending(self) -> bool:
        return self.waits_at is not None

    @property
    def host(self) -> str:
        return self.provenance.host

    @property
    def provider(self) -> str | None:
        return self.provenance.provider

    @property
    def temporary(self) -> bool:
        return self.provenance.temporary

    @property
    def expires_at(self) -> datetime | None:
        return self.provenance.expires_at

    @property
    def doubts(self) -> frozenset[Doubt]:
        return self.trust.doubts

    @property
    def brought_by(self) -> str:
        return self.trust.brought_by

    @property
    def refetches(self) -> Refetches | None:
        return self.trust.refetches

    def with_doubts(self, doubts: frozenset[Doubt]) -> Record:
        """Return this record with other doubts."""
        return replace(self, trust=replace(self.trust, doubts=doubts))


@dataclass(frozen=True, slots=True)
class Tombstone:
    """
    The mark of a removal in the place of a record.

    Attributes:
        digest: Digest of the removed bytes, for an undo; `None`: the key had no image.
    """

    key: Key
    removed_at: datetime
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter of records: `None` means any. It includes `since` and excludes `until`."""

    host: str | None = None
    provider: str | None = None
    digest: Digest | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why an image is not stored, as in the HTTP API: a code and a text, without secrets."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Subject:
    """
    The subject of a fill or a request in logs and metrics, without the link.

    Attributes:
        key: Key of the image.
        host: Host of the link; empty for an uploaded image.
        provider: The service behind the link, if a provider rule names it.
    """

    key: Key
    host: str
    provider: str | None = None

    @property
    def label(self) -> str:
        """Return the label of the provider in metrics: a name of the provider rules, `other`, or `upload`."""
        return self.provider or ("other" if self.host else "upload")


@dataclass(frozen=True, slots=True)
class Backlog:
    """
    The summary of the outbox.

    Attributes:
        images: Number of images that wait for the primary.
        oldest: When the oldest of them was stored.
        error: Why the last attempt failed, without secrets.
    """

    images: int = 0
    oldest: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An image that waits for the primary, and the number of failed uploads."""

    key: Key
    attempts: int
