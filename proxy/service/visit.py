"""Who asks for an image, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.model import Format
    from proxy.ports import Body, Growing
    from proxy.service.address import Address


def _anybody() -> None:
    """Nobody is kept from causing a fill."""


@dataclass(frozen=True, slots=True)
class Visit:
    """
    Who asks, and how.

    Attributes:
        head: Only the head of the answer is wanted.
        came_from_us: A node of ours asks; it is answered from the store and never causes a fill.
        insist: Raises a `SourceRejected` if this visitor may be shown what is kept, but have nothing fetched.
        client: The networks whose limits a fill counts against, the narrowest first, as `core.address.client_networks`
            names them; `None`: the client has shown a token of the API, and is not limited.
        joins_only: Another worker asks, because the fill was seen to be here. It may join; a fill of its own it makes
            itself.
    """

    head: bool = False
    came_from_us: bool = False
    insist: Callable[[], None] = _anybody
    client: tuple[str, ...] | None = None
    joins_only: bool = False


SOMEBODY: Final = Visit()
"""Nothing is known of who asks."""


class Outcome(Enum):
    """How a request was answered, in the words of RFC 9211."""

    HIT = "hit"
    STORED = "stored"
    COLLAPSED = "collapsed"
    UNKEPT = "unkept"
    """Fetched and passed on, but no store could take it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    An image on its way out. Whoever gets one calls `body.aclose` when done.

    Attributes:
        etag: Strong, the same for hit and miss.
        key: Under what it was found: the key of its record or, at a permanent URL, its name. `changed` is told that.
        object_name: `<digest>.<ext>` once it is known: the last part of the permanent URL.
        permanent_url: Where the object is for ever, when that is known and not with us.
        name: A name for people who save the image.
        growing: The body, where it is still on its way.
    """

    key: str
    outcome: Outcome
    format: Format
    etag: str
    name: str
    body: Body
    object_name: str | None = None
    permanent_url: str | None = None
    growing: Growing | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """The client is sent to the source itself."""

    url: str


@dataclass(frozen=True, slots=True)
class Referral:
    """The client is sent to where the object is. Who has it already (`etag`) need not go."""

    address: Address
    etag: str
    object_name: str
    permanent_url: str | None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another worker fetches the image, or did so a moment ago: who wants it asks there, by the worker's name."""

    holder: str
