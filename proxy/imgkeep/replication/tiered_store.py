"""
Tiered store: a remote store as the primary, a read-through disk cache before it, and a local fallback during an outage.

A put is write-through: it returns when the primary has the image. During an outage the fallback stores the image, and
the outbox worker uploads it later.

Rules:
- A lookup asks the fallback first: it is near, and the primary does not have its images yet.
- After a failure the store does not call the primary until a probe succeeds (`CircuitBreaker`). Meanwhile a lookup that
  finds nothing in the fallback raises `Unreachable`: it is no miss.
- Concurrent lookups of one key are one request to the primary, and so are concurrent reads of one object.
- Clients are redirected only to an object that the primary was recently seen to have.
- An object that the primary cannot give may wait in the fallback of another node, which has it then (`PeerObjects`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.errors import Conflict, RemoteFault, Removed, StorageError, Unreachable
from imgkeep.core.layout import object_names
from imgkeep.images.singleflight import SingleFlight
from imgkeep.replication.read_through import RemoteRead
from imgkeep.replication.sightings import Sightings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from datetime import datetime

    from imgkeep.core.records import Digest, Key, Record, Tombstone
    from imgkeep.replication.circuit_breaker import CircuitBreaker
    from imgkeep.replication.peer_objects import PeerObjects
    from imgkeep.storage.bucket.store import BucketStore
    from imgkeep.storage.disk_cache import DiskCache
    from imgkeep.storage.interfaces import Body, Draft, Spool
    from imgkeep.storage.local.store import LocalStore
    from imgkeep.storage.memory import MemorySpool

COPY_BYTES: Final = 1_048_576
"""Size of the pieces in which a draft is copied to the disk of the fallback."""

T = TypeVar("T")


class TieredStore:
    """
    A store over a primary, with its local copies.

    Attributes:
        primary: The remote store.
        cache: The disk cache of its objects.
        fallback: The local store for an outage; `None`: an image that the primary does not take is not stored.
        breaker: The circuit breaker of the primary.

    Args:
        memory: The spool for objects that no disk can take.
        read_spool: The spool for objects of the primary while clients read them.
        peer_objects: What waits in the fallbacks of other nodes; `None`: there are none.
        node: The name of this node among them.
    """

    local_drafts_only = False

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        primary: BucketStore,
        fallback: LocalStore | None,
        cache: DiskCache,
        memory: MemorySpool,
        read_spool: Spool,
        breaker: CircuitBreaker,
        timer: Callable[[], float],
        peer_objects: PeerObjects | None = None,
        node: str = "",
    ) -> None:
        self.name = primary.name
        self.primary = primary
        self.cache = cache
        self.fallback = fallback
        self.breaker = breaker
        self._memory = memory
        self._read_spool = read_spool
        self._peer_objects = peer_objects
        self._node = node
        self._remote_reads: SingleFlight[RemoteRead] = SingleFlight()
        self._lookups: dict[Key, asyncio.Task[Record | None]] = {}
        self._checks: dict[str, asyncio.Task[bool]] = {}
        self._sightings = Sightings(timer)

    async def aclose(self) -> None:
        await self._remote_reads.aclose()
        tasks = [*self._lookups.values(), *self._checks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def outage(self) -> str | None:
        """Why the primary cannot be called, as operators read it; `None`: it can."""
        return None if self.breaker.reason is None else self.breaker.in_full

    async def check(self) -> int:
        """
        Check that the primary works, without a call to one whose circuit breaker is open; return 0: its room is not
        known.

        Raises:
            StorageError: It does not.
        """
        if self.breaker.reason is not None:
            raise StorageError(self.breaker.in_full)
        try:
            return await self.primary.check()
        except RemoteFault as fault:
            self.breaker.report_failure(fault)
            raise

    async def quarantine_if_corrupt(self, name: str, digest: Digest) -> None:
        """Have the primary look at an object again that came as other bytes, of `digest`."""
        await self.call_primary(partial(self.primary.quarantine_if_corrupt, name, digest))
        self._sightings.forget(name)

    async def find(self, key: Key) -> Record | None:
        task = self._lookups.get(key)
        if task is None:
            task = self._lookups[key] = asyncio.create_task(self._find(key))
            task.add_done_callback(partial(self._end_lookup, key))
        return await asyncio.shield(task)

    async def read_again(self, key: Key) -> Record | None:
        """Return the record of the primary, by a request that begins now. Raises as `find`."""
        return await self.call_primary(partial(self.primary.find, key))

    async def fetch(self, name: str, size: int | None) -> Body | None:
        body, fault = await self._fetch_locally(name, size)
        if body is not None:
            return body
        if size is None and name in (self._sightings.absent if self._peer_objects is None else self._sightings.nowhere):
            return None
        remote_read, _ = self._remote_reads.join(name, partial(self._read_remotely, name, size))
        copy = remote_read.body
        copy.hold()
        try:
            if await copy.wait_head():
                return copy
        except BaseException:
            await copy.aclose()
            raise
        await copy.aclose()
        if fault is not None:
            raise fault
        self._sightings.note_nowhere(name)
        return None

    async def _fetch_locally(self, name: str, size: int | None) -> tuple[Body | None, StorageError | None]:
        body = await self.cache.fetch(name, size)
        if body is not None:
            return body, None
        return await self._look_in_fallback(lambda fallback: fallback.fetch(name, size))

    def _read_remotely(self, name: str, size: int | None) -> RemoteRead:
        return RemoteRead(
            name,
            lambda: self._open_remotely(name, size),
            cache=self.cache,
            spool=self._read_spool,
            memory=self._memory,
            report_failure=self.breaker.report_failure,
            quarantine=self.quarantine_if_corrupt,
        )

    async def _open_remotely(self, name: str, size: int | None) -> Body | None:
        """Open an object at the primary, or else at another node where it waits for the primary."""
        body, fault = None, None
        if size is not None or name not in self._sightings.absent:
            try:
                body = await self.call_primary(partial(self.primary.fetch, name, size))
                self._sightings.note_answer(name, is_there=body is not None)
            except StorageError as error:
                fault = error
        if body is None and self._peer_objects is not None:
            body = await self._peer_objects.fetch(name)
        if body is None and fault is not None:
            raise fault
        return body

    async def holds(self, name: str, size: int) -> bool:
        near, fault = await self._look_in_fallback(lambda fallback: _yes(fallback.holds(name, size)))
        if near:
            return True
        if name in self._sightings.present and self.breaker.reason is None:
            return True
        try:
            if await self.call_primary(partial(self.primary.size_of, name)) == size:
                self._sightings.note_answer(name, is_there=True)
                return True
        except StorageError as error:
            fault = error
        if self._peer_objects is not None and await self._peer_objects.holds(name):
            return True
        if fault is not None:
            raise fault
        return False

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        self._sightings.begin_put(record.object_name)
        try:
            stored = await self.call_primary(partial(self.primary.put, draft, record, replaces))
        except Removed:
            self._sightings.forget(record.object_name)  # the primary may have deleted it
            raise
        except Conflict:
            raise
        except StorageError:
            # A replacement waits until the primary is back: only the primary knows whether it may replace its image.
            if self.fallback is None or replaces is not None:
                raise
            return self._waiting(await self._put_in_fallback(self.fallback, draft, record, replaces))
        self._sightings.end_put(record.object_name)
        await self.cache.put(draft, record.object_name)
        return stored

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        if record.pending:
            # Its object is in a fallback alone. One that was uploaded meanwhile stays as it is, and is judged anew, and
            # so does one that waits on another node.
            if self.fallback is None or await self.fallback.find(record.key) is None:
                raise Conflict("the image was uploaded to the primary meanwhile, or waits on another node")
            return self._waiting(await self.fallback.put_record(record, replaces))
        return await self.call_primary(partial(self.primary.put_record, record, replaces))

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        await self.call_primary(partial(self.primary.put_tombstone, tombstone))
        if self.fallback is not None:
            await self.fallback.delete_record(tombstone.key)

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        await self.call_primary(partial(self.primary.block, digest, removed_at, keys))

    async def delete_object(self, digest: Digest) -> None:
        await self.call_primary(partial(self.primary.delete_object, digest))
        await self._forget_locally(digest)

    async def _forget_locally(self, digest: Digest) -> None:
        await self.drop(digest)
        if self.fallback is not None:
            await self.fallback.delete_object(digest)

    async def list_blocked(self) -> Collection[Digest]:
        return await self.call_primary(self.primary.list_blocked)

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        return await self.call_primary(partial(self.primary.find_block, digest))

    async def unblock(self, digest: Digest) -> None:
        await self.call_primary(partial(self.primary.unblock, digest))

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        # A folder that was a store of its own before may hold tombstones.
        near, fault = await self._look_in_fallback(lambda fallback: fallback.find_tombstone(key))
        if near is not None:
            return near
        found = await self.call_primary(partial(self.primary.find_tombstone, key))
        if found is None and fault is not None:
            raise fault
        return found

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        await self.call_primary(partial(self.primary.delete_tombstone, tombstone))
        if self.fallback is not None:
            await self.fallback.delete_tombstone(tombstone)

    async def has_object(self, digest: Digest) -> bool:
        near, fault = await self._look_in_fallback(lambda fallback: _yes(fallback.has_object(digest)))
        if near or await self.call_primary(partial(self.primary.has_object, digest)):
            return True
        if fault is not None:
            raise fault
        return False

    async def drop(self, digest: Digest) -> None:
        """Forget where a removed image was seen, and delete its local copy."""
        for name in object_names(digest):
            self._sightings.forget(name)
        await self.cache.delete(digest)

    async def has(self, name: str) -> bool:
        """Return whether the primary can be called and was recently seen to have the object; call it, if need be."""
        if self.breaker.reason is not None:
            return False
        if name not in self._sightings.present:
            if name in self._sightings.absent:
                return False
            task = self._checks.get(name)
            if task is None:
                task = self._checks[name] = asyncio.create_task(self._check_primary(name))
                task.add_done_callback(lambda _: self._checks.pop(name, None))
            return await asyncio.shield(task)
        return True

    def note_present(self, name: str) -> None:
        """Note that the primary was seen to have the object."""
        self._sightings.note_present(name)

    def _waiting(self, record: Record) -> Record:
        """Return a record of the fallback, marked as such."""
        return replace(record, waits_at=self._node)

    async def call_primary(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Call the primary, unless its circuit breaker is open."""
        if self.breaker.reason is not None:
            raise self._fault(f"the primary store is unavailable: {self.breaker.reason}", self.breaker.place)
        try:
            return await verb()
        except RemoteFault as fault:
            self.breaker.report_failure(fault)
            if self.fallback is None and not fault.general:
                fault.place = fault.place or self.breaker.place
                raise  # it says nothing about the health of the store
            raise self._fault(str(fault), fault.place or self.breaker.place, fault.cause) from None

    def _fault(self, reason: str, place: str, cause: str = "") -> StorageError:
        kind = StorageError if self.fallback is None else Unreachable
        return kind(reason, place=place, cause=cause)

    async def _look_in_fallback(
        self, verb: Callable[[LocalStore], Awaitable[T | None]]
    ) -> tuple[T | None, StorageError | None]:
        """Look in the fallback, and return its failure with a miss: the primary may have the record or object."""
        if self.fallback is None:
            return None, None
        try:
            return await verb(self.fallback), None
        except StorageError as fault:
            return None, fault

    async def _put_in_fallback(
        self, fallback: LocalStore, draft: Draft, record: Record, replaces: Digest | None
    ) -> Record:
        if fallback.disk.owns(draft):
            return await fallback.put(draft, record, replaces)
        copy = await fallback.disk.begin(draft.size)
        try:
            while piece := await draft.read(copy.size, COPY_BYTES):
                await copy.write(piece)
            return await fallback.put(copy, record, replaces)
        finally:
            await copy.aclose()

    async def _check_primary(self, name: str) -> bool:
        """Ask the primary with one request whether it has an object; remember for `fetch` that it has not."""
        try:
            is_there = await self.call_primary(partial(self.primary.has, name))
        except StorageError:
            return False
        self._sightings.note_answer(name, is_there=is_there)
        return is_there

    async def _find(self, key: Key) -> Record | None:
        near, fault = await self._look_in_fallback(lambda fallback: fallback.find(key))
        if near is not None:
            return self._waiting(near)
        record = await self.call_primary(partial(self.primary.find, key))
        if record is None and fault is not None:
            raise fault
        return record

    def _end_lookup(self, key: Key, task: asyncio.Task[Record | None]) -> None:
        del self._lookups[key]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all callers may have left


async def _yes(answer: Awaitable[bool]) -> bool | None:
    """Return `None`, a miss, for `False`."""
    return await answer or None
