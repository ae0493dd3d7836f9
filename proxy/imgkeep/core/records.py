"""The nouns of imgkeep: source, image format, record. Times are aware UTC, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from datetime import datetime

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Key = NewType("Key", str)
"""Lower-case hex SHA-256 of an identity."""

Digest = NewType("Digest", str)
"""Lower-case hex SHA-256 of the bytes of an object."""


class Format(Enum):
    """An image format that we keep: media type and file name extension, the first as registered with IANA."""

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
    """A cursor: browsers know no type of its own, and a desktop tells it from an icon by its name."""
    TIFF = ("image/tiff", "tiff")

    def __init__(self, media_type: str, extension: str) -> None:
        self.media_type = media_type
        self.extension = extension


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Width and height in pixels, as the file's header states them; nothing was decoded."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Source:
    """
    An absolute http(s) URL that was read strictly. Made by `core.source.read_source` alone.

    Attributes:
        scheme: `http` or `https`.
        host: lower-case ASCII: a name without trailing dot (IDNA applied, RFC 5891), a dotted quad, or an IPv6
            address without brackets in its shortest spelling (RFC 5952).
        port: always set; the scheme's own where the URL names none.
        target: path and query as they go on the wire (RFC 9112, 3.2.1): begins with `/`, percent-encoded ASCII.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL; the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL, a credential: never write it to a log, an error or a metric."""
        return f"{self.scheme}://{self.authority}{self.target}"

    def __repr__(self) -> str:
        return f"<Source at {self.host}>"


@dataclass(frozen=True, slots=True)
class Client:
    """
    The side that causes a fetch, as far as shares of common resources go.

    Attributes:
        networks: What counts as one client, the narrowest first (`core.address.client_networks`).
        own: Whether it is the API, a job, or a client with a token of the API: it has no limits, and places are
            reserved for it.
        loopback: Whether the request came from this machine, or through a proxy on it that tells nothing of its
            clients: all of them are one client, and an eighth of the places would be too little for them.
    """

    networks: tuple[str, ...] = ()
    own: bool = False
    loopback: bool = False


OWN: Final = Client(own=True)
"""The API, the jobs, and commands that save."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """
    What a source URL tells by itself.

    Attributes:
        identity: The URL without what only grants permission, in canonical form: names the image.
        key: SHA-256 of the identity.
        provider: The service behind the link, where a provider rule names it.
        temporary: Whether the link expires.
        expires_at: When it dies, an upper bound, where the link says so.
        scheme: The signing scheme, where one was recognised.
        enforced: Whether an image that this link brings vouches for the signature: its services answer a wrong
            signature with an error, never with an image. True as well where no signature was dropped.
        places: Host and path, without port, of what the link names besides itself: the place that it is folded to, and
            every link inside it.
        permission: Whether the identity leaves out something of the link that grants access, as a signature does.
        enforced_by_host: Whether `enforced` is known of the link's host, and not read from the shape of its signature
            alone, which a stranger can write for any host.
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
        """Return whether this is a temporary link by a signature that should still hold."""
        return self.temporary and self.scheme is not None and (self.expires_at is None or now < self.expires_at)

    def may_have_expired(self, now: datetime) -> bool:
        """Return whether an origin that refuses the link does so for its age, and not for what it names."""
        past = self.expires_at is not None and self.expires_at <= now
        return self.scheme is not None or (self.temporary and past)


@dataclass(frozen=True, slots=True)
class Validator:
    """By what an origin tells whether an image changed (RFC 9110, 8.8): its `ETag` and `Last-Modified` as they came."""

    etag: str | None
    modified: str | None


class Doubt(Enum):
    """Why a stored image may not be what another link of its key shows (`core/confirmation.py`)."""

    UNSIGNED = "unsigned"
    """A link brought it that carries no signature."""
    SIGNATURE = "signature"
    """A link brought it whose signature the origin may leave unchecked."""
    SCHEME = "scheme"
    """
    A link brought it whose signature has the shape of a scheme that is always checked, at a host of which that is not
    known: an origin that knows nothing of the scheme may have taken no notice of it.
    """
    ENDED = "ended"
    """A link brought it that had ended by its own words."""
    PLAINTEXT = "plaintext"
    """A part of its way was not encrypted."""
    CONTESTED = "contested"
    """Another link of the key showed other bytes, and has a record of its own."""
    SPLIT = "split"
    """At this origin the signature names the image: the record stands for the link that brought it alone."""
    INCOMPLETE = "incomplete"
    """
    Its framing was whole, and its format says that something is missing: imgkeep fetches it again
    (`core/incomplete_image.py`).
    """


class Standing(Enum):
    """What a stored image is worth to links other than the one that brought it."""

    CONFIRMED = "confirmed"
    PLAIN = "plain"
    PROVISIONAL = "provisional"
    SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Refetches:
    """
    How an incomplete image was fetched again.

    Attributes:
        tries: How often, whatever came of it.
        equal: How often the same bytes came back, without others in between.
        since: When these bytes came first.
        last_at: When it was tried last.
    """

    tries: int
    equal: int
    since: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Provenance:
    """
    What the source URL of a stored image told of itself; nothing, for an image that a client uploaded.

    Attributes:
        host: The host, for operators who look through what is stored.
        provider: The service behind the link, where a provider rule names it.
        temporary: Whether the link expires.
        expires_at: When it expires, where the link says so.
    """

    host: str = ""
    provider: str | None = None
    temporary: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """
    How far a stored image stands for the links of its key.

    Attributes:
        doubts: Why it may not stand for every link; none: it is confirmed.
        brought_by: Fingerprint of the exact link that brought it, where there are doubts.
        refetches: How it was fetched again, where it was incomplete. Without the doubt its completeness is confirmed.
    """

    doubts: frozenset[Doubt] = frozenset()
    brought_by: str = ""
    refetches: Refetches | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """
    What is known under a key. Several records may point at one object.

    Attributes:
        etag: Strong validator of `/img` (RFC 9110, 8.8.3), quotes included. Every fill draws one, and does not derive
            it from the bytes, because it goes out before the last of them is known; so hit and miss answer alike.
        stored_at: When the image was fetched, to the second.
        validator: The origin's, where it gave one.
        pending: Whether the image is in the fallback only, and waits for the primary. Not part of the stored record.
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
    pending: bool = False

    @property
    def object_name(self) -> str:
        """`<digest>.<ext>`: the last part of the permanent URL and of the object's path in a store."""
        return f"{self.digest}.{self.format.extension}"

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
    What lies in the place of a record that was removed, or of one that must never be.

    Attributes:
        digest: The bytes that were removed with the key, for an undo; `None`: no image was stored under it.
    """

    key: Key
    removed_at: datetime
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are looked for: `None` means any. `since` is included, `until` is not."""

    host: str | None = None
    provider: str | None = None
    digest: Digest | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image is not kept, in the words of the HTTP API: for programs and for people, without secrets."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Subject:
    """
    What a fill or a request was about, as far as a log may tell: never the link.

    Attributes:
        key: Of the image.
        host: Of the link; empty for an image that came without one.
        provider: The service behind the link, where the provider rules know it.
    """

    key: Key
    host: str
    provider: str | None = None

    @property
    def label(self) -> str:
        """Return the provider as metrics tell it: a name of the provider rules, `other`, or `upload`."""
        return self.provider or ("other" if self.host else "upload")


@dataclass(frozen=True, slots=True)
class Totals:
    """What is stored in all. `object_bytes` counts equal bytes once; `hosts` are the ten with most images."""

    images: int
    objects: int
    object_bytes: int
    oldest: datetime | None
    newest: datetime | None
    hosts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Backlog:
    """
    What waits for the primary.

    Attributes:
        images: How many.
        oldest: Since when the one waits that waits longest.
        error: Why the last attempt failed; without secrets.
    """

    images: int = 0
    oldest: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An image that waits for the primary, and how often it was tried in vain."""

    key: Key
    attempts: int
