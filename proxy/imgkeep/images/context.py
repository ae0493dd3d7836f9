"""Who asks for an image, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from imgkeep.core.records import OWN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from imgkeep.core.records import Client, Format, Record
    from imgkeep.images.redirects import ObjectUrl
    from imgkeep.storage.interfaces import Body


T = TypeVar("T")


def _anybody() -> None:
    """Nobody is kept from causing a fill."""


async def _stay(awaited: Awaitable[T]) -> T:
    """Wait until the end, whichever reader leaves."""
    return await awaited


@dataclass(frozen=True, slots=True)
class RequestContext:
    """
    Who asks, and how.

    Attributes:
        head: Only the head of the answer is wanted.
        from_own_node: A node of ours asks; it is answered from the store and never causes a fill.
        authorize_fetch: Raises a `SourceRejected` if this visitor may be shown what is kept, but have nothing fetched.
        client: Whose limits a fill counts against, and whose share of the places for fetches it takes.
        wait: Waits for something as long as the client is there; raises `ConnectionError` when it has left.
    """

    head: bool = False
    from_own_node: bool = False
    authorize_fetch: Callable[[], None] = _anybody
    client: Client = OWN
    wait: Callable[[Awaitable[Any]], Awaitable[Any]] = _stay


INTERNAL: Final = RequestContext()
"""Nothing is known of who asks."""


class CacheStatus(Enum):
    """How a request was answered, in the words of RFC 9211."""

    HIT = "hit"
    STORED = "stored"
    COLLAPSED = "collapsed"
    NOT_STORED = "not_stored"
    """Fetched and passed on, but no store could take it."""


class Growing(Protocol):
    """A body that is on its way from its origin."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""

    def hold(self) -> None:
        """Announce one more reader, who calls `aclose` when done."""

    async def share_file(self) -> SharedFile | None:
        """Let another process read along; `None`: it has to be sent what it wants to read."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """
    How a body grows, for another process on this machine.

    Attributes:
        path: The file that it grows in, for now: it is moved when it is put.
        steps: How many bytes there are, whenever there are more: in the file, as long as none come with the number. A
            disk may fail; then the rest comes along, each time the bytes before the number. Raises as `read` does.
    """

    path: Path
    steps: AsyncIterator[tuple[int, bytes]]


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
        immutable: Whether the client may keep it for ever; else it may turn out to be another picture.
        repeatable: Whether later requests by the same link are answered alike; else the link is still to be tried.
        record: By what it was found, if there is a record.
    """

    key: str
    outcome: CacheStatus
    format: Format
    etag: str
    name: str
    body: Body
    object_name: str | None = None
    permanent_url: str | None = None
    growing: Growing | None = None
    immutable: bool = True
    repeatable: bool = True
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class RedirectToSource:
    """The client is sent to the source itself."""

    url: str


@dataclass(frozen=True, slots=True)
class RedirectToObject:
    """The client is sent to where the object is. Who has it already (`etag`) need not go."""

    address: ObjectUrl
    etag: str
    object_name: str
    permanent_url: str | None
    immutable: bool = True


@dataclass(frozen=True, slots=True)
class HeldByPeer:
    """
    Another worker fetches the image, or did so a moment ago: who wants it asks there, by the worker's name. `lease` is
    the name of what it holds.
    """

    holder: str
    lease: str
