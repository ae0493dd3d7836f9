"""
What the services need of the world, in their own words: one Protocol a neighbour, one to four verbs each.

Rules for whoever implements one:
- A miss is `None`; a fault is a typed error of `core.errors`; they never meet.
- No call blocks the event loop, and every call ends: what can hang has a time limit of its own.
- Bytes are never held whole when they can be large; a body is read in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from imgkeep.core.records import OWN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from mmap import mmap
    from pathlib import Path

    from imgkeep.core.errors import SourceForbidden, StorageError
    from imgkeep.core.layout import RecordUnreadable
    from imgkeep.core.records import (
        Client,
        Digest,
        Key,
        Record,
        Source,
        Subject,
        Tombstone,
        Validator,
    )

    Bytes = bytes | bytearray | memoryview
    Clock = Callable[[], datetime]
    """The current time, aware UTC."""
    Sleep = Callable[[float], Awaitable[None]]
    """Wait for so many seconds."""

T = TypeVar("T")


class Readable(Protocol):
    """Bytes that come. The holder calls `aclose` when done, exactly once."""

    async def read(self, offset: int, size: int) -> bytes:
        """
        Return between 1 and `size` bytes from `offset` on; nothing at the end.

        Raises:
            ImgkeepError: The bytes are not to be had; those already returned must not pass for the whole.
        """

    async def aclose(self) -> None: ...


class Body(Readable, Protocol):
    """The bytes of an image. Others may read the same ones meanwhile."""

    @property
    def size(self) -> int | None:
        """The size in bytes; `None` while nobody knows it."""

    @property
    def at_hand(self) -> CacheEntry | None:
        """The same bytes for later readers, where the store can have them at hand."""

    async def settle(self) -> int:
        """Wait until the size is certain and return it. Raises as `read` does."""


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


class CacheEntry(Protocol):
    """The bytes of a stored object, for who cannot wait. May be held for long, and become empty at any time."""

    def whole(self) -> Bytes | None:
        """
        Return all bytes, which nobody changes; `None`: they cannot be had at once, or not any more.

        Never waits for a disk.
        """

    def load(self) -> Awaitable[None] | None:
        """Have the bytes brought where `whole` finds them, if that can be done; `None`: it cannot. Never raises."""


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
        """Return `verdict(all bytes written so far)`, in a thread of the store. For its own work alone: see `view`."""

    def view(self, verdict: Callable[[bytearray | mmap], T]) -> T:
        """
        Return `verdict(all bytes written so far)`. Blocks for as long as the verdict takes; may go on after `aclose`.

        Raises:
            StorageError: They cannot be read.
        """

    async def share_file(self) -> Path | None:
        """
        Return the file that the bytes are in from now on, up to `size`; `None`: they are in memory.

        Raises:
            StorageError: It cannot be made.
        """

    async def aclose(self) -> None: ...


class Spool(Protocol):
    """Where drafts begin."""

    async def begin(self, size: int | None) -> Draft:
        """
        Begin a draft of `size` bytes, where that is known.

        Raises:
            StorageError: There is no room, or the place is not usable.
        """


class Disk(Spool, Protocol):
    """Where drafts begin that other processes on this machine can read."""

    async def open_shared(self, path: Path) -> Readable | None:
        """
        Open what another process lays open, for reading what it says is there; `None`: it is gone.

        Raises:
            StorageError: It cannot be opened.
        """


class Store(Protocol):
    """
    The durable truth: objects by digest, records by key (`docs/architecture.md`, stored layout).

    Attributes:
        name: What the API calls it: `local`, `s3`, ...
        disk_only: Whether only what lies on the disk of its own spool can be put.
    """

    name: str
    disk_only: bool

    async def find(self, key: Key) -> Record | None:
        """
        Raises:
            Removed: There is a tombstone.
            Unreachable: The primary cannot tell, and what is fetched meanwhile may be put.
            StorageError: The store cannot tell.
        """

    async def fetch(self, name: str, size: int | None) -> Body | None:
        """
        Open the object `<digest>.<ext>` for reading; `size` is what its record says, where one is at hand.

        `None`: it is not there, or it is damaged and was set aside.

        Raises:
            Unreachable, StorageError: As `find`.
        """

    async def holds(self, name: str, size: int) -> bool:
        """
        Whether the object is there and of this size, without reading it.

        Raises:
            Unreachable, StorageError: As `find`.
        """

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        """
        Keep a finished draft and its record: whole or not at all, the body before the record, durable on return.

        Another image that is kept under the key already stays, unless `replaces` is its digest or its object is gone.
        Returns the record as it stands now: `pending` if it has to wait for the primary.

        Raises:
            Removed: There is a tombstone.
            Conflict: Something is kept under the key that has to stay.
            StorageError: It is not kept; nothing partial remains under a final name.
        """

    async def restate(self, record: Record, replaces: Digest | None = None) -> Record:
        """
        Write a record whose object is there already; durable on return.

        Another image that is kept under the key already stays, unless `replaces` is its digest or its object is gone.
        Returns the record as it stands now.

        Raises:
            Removed, Conflict, StorageError: As `put`.
        """

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        """
        Put a tombstone in the place of a record, whatever lies there; durable on return.

        Raises:
            StorageError: It is not put.
        """

    async def refuse(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        """
        Block a digest until it is unblocked, and then remove its object; durable on return. `keys` are those that get a
        tombstone with it: an undo finds them by `find_block`.

        Raises:
            StorageError: It may be noted; the object may still be there.
        """

    async def forget(self, digest: Digest) -> None:
        """
        Remove the object of a picture, whatever its extension.

        Raises:
            StorageError: It may still be there.
        """

    async def refused(self) -> Collection[Digest]:
        """
        Return the digests of all pictures that are refused.

        Raises:
            StorageError: It cannot tell.
        """

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        """
        Ask whether a digest is blocked; return the keys that got a tombstone with it, `None`: it is not blocked.

        Raises:
            StorageError: It cannot tell.
        """

    async def unblock(self, digest: Digest) -> None:
        """
        Undo `refuse`, but for the object, which is gone; durable on return.

        Raises:
            StorageError: The digest may still be blocked.
        """

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        """
        Return the tombstone that lies in the place of a record.

        Raises:
            StorageError: It cannot tell.
        """

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        """
        Delete this very tombstone; a record, or a later tombstone, that lies in its place stays. Durable on return.

        Raises:
            StorageError: It may still be there.
        """

    async def has_object(self, digest: Digest) -> bool:
        """
        Tell whether bytes are stored, whatever their extension.

        Raises:
            StorageError: It cannot tell.
        """


class Archive(Protocol):
    """A store that can be walked, for maintenance. Paths are those of the stored layout."""

    def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Yield path and size of all that is under `v1/objects` or `v1/records`, in the order of the paths."""

    async def read_records(self, paths: Sequence[str]) -> Sequence[tuple[str, Record | Tombstone | RecordUnreadable]]:
        """Read records and tombstones; those that are gone meanwhile are left out."""

    async def hash_object(self, path: str) -> Digest | None:
        """Read an object again; `None`: it is gone meanwhile."""

    async def judge_object(self, path: str, verdict: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        """Read an object again, and judge all its bytes in a thread; `None`: it is gone meanwhile."""

    async def put_record(self, record: Record) -> None:
        """
        Keep a record whose object is here already.

        Raises:
            Conflict: Something is kept under the key that has to stay.
            StorageError: It is not kept.
        """

    async def quarantine(self, path: str) -> None:
        """Move something damaged out of every reader's way, without throwing it away."""

    async def refused(self) -> Collection[Digest]:
        """As `Store.refused`."""


class Holder(Archive, Protocol):
    """A store that can be copied to another one, and that another one can be copied to."""

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        """As `Store.put_tombstone`."""

    async def refuse(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        """As `Store.refuse`."""

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        """As `Store.find_block`."""

    def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """As `Archive.walk`, also for one of the folders in it, as in `v1/objects/ab`."""

    async def open_draft(self, name: str, spool: Spool) -> Draft | None:
        """
        Give the object `<digest>.<ext>` as a draft that can be put elsewhere, damaged or not; `None`: it is not there.

        What does not lie on a disk here is copied into a draft of `spool`. Whoever borrows it calls `aclose`.
        """

    async def put_object(self, draft: Draft, name: str) -> None:
        """
        Keep a finished draft as the object `<digest>.<ext>`: whole or not at all, durable on return.

        Raises:
            StorageError: It is not kept.
        """


class Remote(Store, Protocol):
    """A store behind a network, which can be away, and to which clients can be sent."""

    async def size_of(self, name: str) -> int | None:
        """Return the size of the object `<digest>.<ext>` as the store tells it now; `None`: it is not there."""

    async def has(self, name: str) -> bool:
        """Tell whether the object `<digest>.<ext>` is there, with a single request, whatever the answer."""

    async def import_image(self, draft: Draft | None, record: Record) -> Record:
        """
        Bring an image in that is kept elsewhere; return the record that stands under its key then.

        The object comes in any case, because its URL was handed out; the record, unless another image is kept. Without
        a draft the object has to be here already.
        """

    async def quarantine_if_corrupt(self, name: str, digest: Digest) -> None:
        """An object came as other bytes, of `digest`: look again, and set it aside if it is what lies there."""

    def public_url(self, name: str) -> str:
        """Return where the object is for everybody, if the bucket is public."""

    async def presign(self, name: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link to the object, for `GET` or else for `HEAD`, and its life in seconds, `ttl_s` at most."""


class Cache(Disk, Protocol):
    """Copies of what is in the primary, on the local disk; it may forget any of them at any time."""

    async def fetch(self, name: str, size: int | None) -> Body | None:
        """As `Store.fetch`; a disk that fails is a miss."""

    async def drop(self, digest: Digest) -> None:
        """Remove the copy of a picture; a disk that fails is nobody's trouble, for the picture is refused."""

    async def keep(self, draft: Draft, name: str) -> None:
        """Keep a finished draft as the object `<digest>.<ext>`, if it can; whoever reads the draft goes on."""

    async def take(self, record: Record) -> bool:
        """
        Take an image over from the fallback: its record leaves, its object becomes a copy here.

        False: another record lies there now, and nothing was done.

        Raises:
            StorageError: The disk fails, and the image may still be in the fallback.
        """


class Refuge(Store, Spool, Archive, Protocol):
    """The fallback: a local store whose images leave again (`Cache.take`)."""

    def takes(self, draft: Draft) -> bool:
        """Whether the draft lies on this disk and can be put as it is."""

    async def delete(self, key: Key) -> None:
        """Remove a record."""

    async def open_verified_draft(self, name: str) -> Draft | None:
        """Open a kept object as a draft that can be put elsewhere; `None`: it is not there, or damaged."""


class NotModified(Exception):
    """An answer to who asked with a validator, and no failure: the image is what it was (RFC 9110, 15.4.5)."""


class OriginResponse(Protocol):
    """
    A successful answer whose body has not been read.

    Attributes:
        size: The body's size where the framing declares it (RFC 9112, 6.2).
        validator: By what the origin will tell whether the image changed.
        plaintext: Whether any hop on the way to it, redirects included, was not encrypted.
        media_type: What the origin calls it, in lower case and without parameters; empty: it does not say.
        is_part: Whether it is a part by its status, though nobody asked for one; it may be the whole all the same.
        beginning: The first bytes of the body, once some have come: a few kilobytes at most.
        at_hand: How many bytes of the body have come that `chunks` has not yielded, as far as that can be told.
    """

    size: int | None
    validator: Validator | None
    plaintext: bool
    media_type: str
    is_part: bool
    beginning: bytes

    @property
    def at_hand(self) -> int: ...

    def chunks(self) -> AsyncIterator[bytes]:
        """
        Yield the body as it comes.

        Raises:
            OriginError: The body broke off, came too slowly, or grew beyond `fetch.body_bytes_max`.
        """

    @property
    def framed(self) -> bool:
        """Whether framing or coding proved, at the end of `chunks`, that nothing is missing."""


def _nothing() -> None:
    """Tell no one."""


class Demand:
    """
    Who causes a fetch, and whether it may be stopped for others. The caller changes it while the fetch runs.

    Attributes:
        client: Whose share of the places the fetch takes.
        yields: Whether no client waits for what it brings. Such a fetch goes on as long as it keeps no other waiting.
        changed: Is called when `yields` has changed; the fetch sets it.
        refusal_size: Tells by the status of an error how much of its body is wanted in `OriginError.refusal`.
    """

    __slots__ = ("changed", "client", "refusal_size", "yields")

    def __init__(
        self, client: Client = OWN, *, yields: bool = False, refusal_size: Callable[[int], int] = lambda _: 0
    ) -> None:
        self.client = client
        self.yields = yields
        self.refusal_size = refusal_size
        self.changed: Callable[[], None] = _nothing

    def set(self, *, yields: bool) -> None:
        if yields != self.yields:
            self.yields = yields
            self.changed()

    def unwatch(self) -> None:
        """The fetch is over."""
        self.changed = _nothing


class Origin(Protocol):
    """The servers behind source URLs."""

    def fetch(
        self,
        source: Source,
        known: Validator | None = None,
        demand: Demand | None = None,
        *,
        fail_fast: bool = False,
    ) -> AbstractAsyncContextManager[OriginResponse]:
        """
        Ask for the image: redirects followed, every hop judged, failures retried within the time limits. `fail_fast`: there
        is another way to the image, so connect quickly and retry nothing.

        Without a `demand` it is our own fetch, which never yields.

        Raises:
            NotModified: It is what it was when `known` was given (RFC 9110, 13.1).
            SourceForbidden, LoopDetected: Policy refuses a hop.
            OriginError: It failed; the subclass says how.
            Busy: A limit on concurrency or its queue is reached.
            Yielded: It was stopped for another one, as `demand` allowed.
        """


class Observer(Protocol):
    """Who wants to know what happened to fills; counts, and never fails."""

    def weighed(self, outcome: str) -> None:
        """What a link brought was compared with what was stored under its key, or a probe has ended."""

    def completed(self, outcome: str) -> None:
        """An incomplete image was fetched again, or that failed; or it was confirmed as it is."""

    def suspected(self, record: Record) -> None:
        """The bytes of a record came under so many identities of its host that they may be a placeholder."""

    def filled(self, subject: Subject, size: int, *, pending: bool) -> None:
        """An image was fetched and kept; `pending`: in the fallback only."""

    def unchanged(self, subject: Subject) -> None:
        """An origin was asked whether an image changed, and it did not."""

    def not_stored(self, subject: Subject, fault: StorageError) -> None:
        """An image was fetched and delivered, but not kept; a `Conflict` is nobody's trouble."""

    def failed(self, subject: Subject, error: BaseException) -> None:
        """A fill ended without an image."""

    def refused(self, subject: Subject, error: SourceForbidden) -> None:
        """The policy forbids a link, so nothing was fetched."""


class FillLeases(Protocol):
    """
    Which of several workers fetches which image.

    Attributes:
        grace_s: So long a claim is seen after its image was kept. A look-up that began earlier says nothing.
    """

    grace_s: float

    def take(self, key: str) -> str | None:
        """Claim a key; `None`: it is ours, now or already. Else the name of the worker that has it."""

    def release(self, key: str, *, kept: bool = False) -> None:
        """Let go of a claim of ours, if there is one: at once, or when nobody can have missed what was `kept`."""


class Peers(Protocol):
    """The other workers that share our port."""

    async def wait(self, holder: str, key: str) -> None:
        """
        Wait until a worker does not fetch the image of a key any more.

        Raises:
            Busy: It cannot be asked.
        """

    async def tell(
        self,
        *,
        refused: Collection[Digest] = (),
        changed: Collection[Key] = (),
        copies: Mapping[str, int] = ...,
        restored: Collection[Digest] = (),
    ) -> None:
        """
        Tell all others, and wait until they know: what is refused from now on, under which keys something else is kept,
        which local copies were brought or used, by name and size, and which digests may be blocked no longer.

        Raises:
            StorageError: Not everybody is certain to know.
        """


class Meter(Protocol):
    """Counts answers, and shows all counters."""

    def answered(self, route: str, outcome: str, status: int, size: int, seconds: float) -> None: ...

    def page(self) -> bytes:
        """Return the counters in Prometheus' text format 0.0.4."""

    def tell(self, name: str) -> bytes:
        """Return the counters for another worker; ours is called `name`."""

    def sum_up(self, told: Sequence[bytes], *, workers: int, unresponsive: int) -> bytes:
        """
        Return what was told as one page, as `page` does: by so many `workers`, and by such that have ended. Of `unresponsive`
        ones nothing came in time.
        """
