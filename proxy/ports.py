"""
What the services need of the world, in their own words: one Protocol a neighbour, one to four verbs each.

Rules for whoever implements one:
- A miss is `None`; a fault is a typed error of `core.errors`; they never meet.
- No call blocks the event loop, and every call ends: what can hang has a time limit of its own.
- Bytes are never held whole when they can be large; a body is read in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from mmap import mmap

    from proxy.core.model import Digest, Key, Record, Source, Totals, Validator
    from proxy.core.stored import RecordUnreadable

    Clock = Callable[[], datetime]
    """The current time, aware UTC."""

T = TypeVar("T")


class Body(Protocol):
    """Readable bytes. The holder calls `aclose` when done, exactly once; others may read the same bytes meanwhile."""

    @property
    def size(self) -> int | None:
        """The size in bytes; `None` while nobody knows it."""

    async def settle(self) -> int:
        """Wait until the size is certain and return it. Raises as `read` does."""

    async def read(self, offset: int, size: int) -> bytes:
        """
        Return between 1 and `size` bytes from `offset` on; nothing at the end.

        Raises:
            ImgkeepError: The bytes are not to be had; those already returned must not pass for the whole.
        """

    async def aclose(self) -> None: ...


class Draft(Protocol):
    """
    Bytes on their way into a store: append-only, readable by many while it grows, gone unless it is put.

    Owned by the fill that began it, which calls `aclose` once when the last reader has left; that removes whatever
    was not put.
    """

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def digest(self) -> Digest:
        """SHA-256 of the bytes written so far."""

    async def write(self, data: bytes) -> None:
        """
        Append `data`.

        Raises:
            StorageError: It could not be written. What was written before can still be read.
        """

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""

    async def judge(self, verdict: Callable[[bytearray | mmap], T]) -> T:
        """Return `verdict(all bytes written so far)`, away from the event loop."""

    async def aclose(self) -> None: ...


class Spool(Protocol):
    """Where drafts begin."""

    async def begin(self, size: int | None) -> Draft:
        """
        Begin a draft of `size` bytes, where that is known.

        Raises:
            StorageError: There is no room, or the place is not usable.
        """


class Store(Protocol):
    """The durable truth: objects by digest, records by key (`docs/architecture.md`, stored layout)."""

    name: str
    """What the API calls it: `local`, `s3`, ..."""

    async def find(self, key: Key) -> Record | None: ...

    async def fetch(self, name: str, size: int | None) -> Body | None:
        """
        Open the object `<digest>.<ext>` for reading; `size` is what its record says, where one is at hand.

        `None`: it is not there, or it is damaged and was set aside.

        Raises:
            StorageError: The store cannot tell.
        """

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> None:
        """
        Keep a finished draft and its record: whole or not at all, the body before the record, durable on return.

        Another image that is kept under the key already stays, unless `replaces` is its digest or its object is gone.

        Raises:
            StorageError: It is not kept; nothing partial remains under a final name.
        """

    async def delete(self, key: Key) -> None:
        """Remove the record; the object stays as long as nobody knows that no other record points at it."""


class Catalog(Protocol):
    """The fast, queryable view of the records. Never the truth: losing it loses nothing."""

    async def find(self, key: Key) -> Record | None: ...

    async def put(self, record: Record) -> None:
        """Bring a record in, soon: whoever keeps an image does not wait for a view of it."""


class NotModified(Exception):
    """An answer to who asked with a validator, and no failure: the image is what it was (RFC 9110, 15.4.5)."""


class OriginResponse(Protocol):
    """
    A successful answer whose body has not been read.

    Attributes:
        size: The body's size where the framing declares it (RFC 9112, 6.2).
        validator: By what the origin will tell whether the image changed.
    """

    size: int | None
    validator: Validator | None

    def chunks(self) -> AsyncIterator[bytes]:
        """
        Yield the body as it comes.

        Raises:
            OriginError: The body broke off, came too slowly, or grew beyond `fetch.body_bytes_max`.
        """

    @property
    def framed(self) -> bool:
        """Whether framing or coding proved, at the end of `chunks`, that nothing is missing."""


class Origin(Protocol):
    """The servers behind source URLs."""

    def fetch(self, source: Source, known: Validator | None = None) -> AbstractAsyncContextManager[OriginResponse]:
        """
        Ask for the image: redirects followed, every hop judged, failures retried within the time limits.

        Raises:
            NotModified: It is what it was when `known` was given (RFC 9110, 13.1).
            SourceForbidden, LoopDetected: Policy refuses a hop.
            OriginError: It failed; the subclass says how.
            Busy: A limit on concurrency or its queue is reached.
        """


class Observer(Protocol):
    """Who wants to know what happened to fills; counts, and never fails."""

    def filled(self, size: int) -> None:
        """An image was fetched and kept."""

    def unchanged(self) -> None:
        """An origin was asked whether an image changed, and it did not."""

    def unkept(self, reason: str) -> None:
        """An image was fetched and delivered, but could not be kept."""

    def failed(self, error: BaseException) -> None:
        """A fill ended without an image."""


class Watched(Protocol):
    """A part whose health is watched."""

    async def check(self) -> int:
        """
        Try whether it works; return the bytes that are free in it, 0 where that means nothing.

        Raises:
            StorageError: It does not work.
        """


class Archive(Protocol):
    """A store that can be walked, for maintenance. All calls block; paths are those of the stored layout."""

    def records(self) -> Iterator[tuple[str, Record | RecordUnreadable]]: ...

    def objects(self) -> Iterator[str]: ...

    def hash_object(self, path: str) -> Digest: ...

    def set_aside(self, path: str) -> None:
        """Move a damaged file out of every reader's way, without throwing it away."""


class Ledger(Protocol):
    """A catalog that can be looked through, for people, and filled anew."""

    async def page(self, *, limit: int, after: tuple[int, str] | None = None) -> Sequence[Record]:
        """Return up to `limit` records, newest first, from behind `after`: epoch seconds and key of the last one."""

    async def count(self) -> Totals: ...

    async def rebuild(self, records: Callable[[], Iterable[Record]]) -> int:
        """Bring in all records that `records` walks, which may block, drop all others, and return how many."""


class Meter(Protocol):
    """Counts answers, and shows all counters."""

    def answered(self, route: str, outcome: str, status: int, size: int, seconds: float) -> None: ...

    def page(self) -> bytes:
        """Return the counters in Prometheus' text format 0.0.4."""
