"""
Inputs and results of the image service: the context of a request, and its delivery, redirect or holder of a lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from imgkeep.core.records import OWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.records import Client, Format, Record
    from imgkeep.images.object_urls import ObjectUrl
    from imgkeep.images.shared_body import SharedBody
    from imgkeep.storage.interfaces import Body


T = TypeVar("T")

FOLLOW_ATTEMPTS_MAX: Final = 50
"""Maximum number of times that a request follows a lease to another worker and repeats its lookup."""
FRUITLESS_MAX: Final = 10
"""
Maximum number of these after which a request goes on without the leases of a member on another node: one that was
killed has them until it counts as dead, while the other workers of its node answer that they run no such fill.
"""


def allow_fetch() -> None:
    """Let the client cause a fill."""


async def _wait_to_the_end(awaited: Awaitable[T]) -> T:
    """Wait until the end, whether a client is there or not."""
    return await awaited


@dataclass(frozen=True, slots=True)
class RequestContext:
    """
    The client, and how it asks.

    Attributes:
        head: The client wants only the head of the answer.
        from_own_node: Another node of this installation asks: imgkeep answers from the store and starts no fill.
        authorize_fetch: Raises a `SourceRejected` if this client may see stored images, but cause no fetch.
        client: The client whose limits a fill counts against, and whose share of the fetch slots it takes.
        wait: Waits for something as long as the client is there; raises `ConnectionError` when it has left.
    """

    head: bool = False
    from_own_node: bool = False
    authorize_fetch: Callable[[], None] = allow_fetch
    client: Client = OWN
    wait: Callable[[Awaitable[Any]], Awaitable[Any]] = _wait_to_the_end


INTERNAL: Final = RequestContext()
"""Context of a request of the program itself: a job, a command, a refresh."""


class CacheStatus(Enum):
    """How the service answered a request, in the words of RFC 9211."""

    HIT = "hit"
    STORED = "stored"
    COLLAPSED = "collapsed"
    DERIVED = "derived"
    """A picture that was made for the request, of an image that was stored before."""
    NOT_STORED = "not_stored"
    """Fetched and passed on, but no store could take it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    An image on its way to a client. The caller closes `body`.

    Attributes:
        key: Where it was found: the key of its record or, at a permanent URL, its name. Changes are passed on by it.
        etag: Strong, the same for hit and miss.
        name: A file name for people who save the image.
        object_name: `<digest>.<ext>` once it is known: the last part of the permanent URL. A derived picture has its
            options behind that of the original.
        permanent_url: The permanent URL of the object, when that is known and at another server.
        growing: The body, while it still grows.
        immutable: Whether the client may keep it for ever; else it may turn out to be another image.
        repeatable: Whether later requests by the same link get the same answer; else the link is still to be tried.
        record: The record by which it was found, if there is one.
    """

    key: str
    cache_status: CacheStatus
    format: Format
    etag: str
    name: str
    body: Body
    object_name: str | None = None
    permanent_url: str | None = None
    growing: SharedBody[Any] | None = None
    immutable: bool = True
    repeatable: bool = True
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """
    The record of a link whose image is stored.

    Attributes:
        cache_status: `HIT`, or how the image has come for this request.
        immutable: As in `Delivery`.
        repeatable: As in `Delivery`.
        is_new: Whether this request stored the image.
    """

    record: Record
    cache_status: CacheStatus
    immutable: bool = True
    repeatable: bool = True
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class RedirectToSource:
    """The client is sent to the source itself."""

    url: str


@dataclass(frozen=True, slots=True)
class RedirectToObject:
    """
    The client is sent to the object, or to a derived picture. A client that has it already (`etag`) need not go.

    Attributes:
        object_name: As in `Delivery`.
    """

    address: ObjectUrl
    etag: str
    object_name: str | None
    permanent_url: str | None
    immutable: bool = True


@dataclass(frozen=True, slots=True)
class HeldByPeer:
    """
    Another worker or node fetches the image, or did so a moment ago: this worker follows it there.

    Attributes:
        holder: The name of the other worker, or the id of the member of another node.
        lease: The name of the lease that it has.
    """

    holder: str
    lease: str
