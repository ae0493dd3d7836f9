"""
The primary, its cache and its fallback as one store.

Rules:
- The fallback is looked at first: it is near, and what is in it is not in the primary yet.
- A primary that fails is not asked again until a trial found it working (`breaker`); meanwhile the fallback takes what
  comes. A miss of a primary that cannot be asked is no miss, but `Unreachable`.
- Many who look for one thing at the primary are one request.
- Where clients may be sent is what the primary was seen to have, lately.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from cachetools import TTLCache

from imgkeep.core.errors import Conflict, RemoteFault, StorageError, Unreachable
from imgkeep.core.layout import object_names
from imgkeep.images.singleflight import SingleFlight
from imgkeep.replication.read_through import RemoteRead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from datetime import datetime

    from imgkeep.core.records import Digest, Key, Record, Tombstone
    from imgkeep.replication.circuit_breaker import CircuitBreaker
    from imgkeep.storage.disk_cache import DiskCache
    from imgkeep.storage.interfaces import Body, Draft, Spool
    from imgkeep.storage.local.store import LocalStore
    from imgkeep.storage.s3 import S3Store

SEEN_MAX: Final = 100_000
"""Names that the primary was seen to have; 200 bytes each, 20 MB."""
SEEN_TTL_S: Final = 3600
"""Then it is asked again, in case somebody emptied the bucket."""

ABSENT_TTL_S: Final = 30
"""
So long a permanent URL that leads to nothing costs no further request: a stranger can invent some. What is put here is
found at once; what another node puts meanwhile under a URL that was asked for here in vain, after this time.
"""

T = TypeVar("T")


class TieredStore:
    """Implements `Store` over a primary. `fallback` `None`: what the primary does not take is not kept."""

    local_drafts_only = False

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        primary: S3Store,
        fallback: LocalStore | None,
        cache: DiskCache,
        memory: Spool,
        breaker: CircuitBreaker,
        timer: Callable[[], float],
    ) -> None:
        self.name = primary.name
        self._primary = primary
        self._fallback = fallback
        self._cache = cache
        self._memory = memory
        self._breaker = breaker
        self._remote_reads: SingleFlight[RemoteRead] = SingleFlight()
        self._asking: dict[Key, asyncio.Task[Record | None]] = {}
        self._looking: dict[str, asyncio.Task[bool]] = {}
        self._absent: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        self._put: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        """Names that were put here lately."""
        self._seen: TTLCache[str, bool] = TTLCache(SEEN_MAX, SEEN_TTL_S, timer=timer)

    async def aclose(self) -> None:
        await self._remote_reads.aclose()
        tasks = [*self._asking.values(), *self._looking.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def report_failure(self, fault: RemoteFault) -> None:
        self._breaker.report_failure(fault)

    async def quarantine_if_corrupt(self, name: str, digest: Digest) -> None:
        """The primary gave other bytes than were put: `digest` is theirs."""
        await self._call_primary(partial(self._primary.quarantine_if_corrupt, name, digest))
        self._seen.pop(name, None)

    async def find(self, key: Key) -> Record | None:
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._look(key))
            task.add_done_callback(partial(self._asked, key))
        return await asyncio.shield(task)

    async def fetch(self, name: str, size: int | None) -> Body | None:
        body = await self._cache.fetch(name, size)
        if body is not None:
            return body
        body, fault = await self._look_in_fallback(lambda fallback: fallback.fetch(name, size))
        if body is not None:
            return body
        if size is None and name in self._absent:
            return None
        remote_read, _ = self._remote_reads.join(name, partial(self._read_remotely, name, size))
        copy = remote_read.body
        copy.hold()
        try:
            if await copy.wait_head():
                self._seen[name] = True
                return copy
        except BaseException:
            await copy.aclose()
            raise
        await copy.aclose()
        self._seen.pop(name, None)
        if fault is not None:
            raise fault
        self._note_absent(name)
        return None

    def _read_remotely(self, name: str, size: int | None) -> RemoteRead:
        return RemoteRead(
            name,
            lambda: self._call_primary(partial(self._primary.fetch, name, size)),
            self._cache,
            self._memory,
            report_failure=self._breaker.report_failure,
            quarantine=self.quarantine_if_corrupt,
        )

    async def holds(self, name: str, size: int) -> bool:
        near, fault = await self._look_in_fallback(lambda fallback: _yes(fallback.holds(name, size)))
        if near:
            return True
        if name in self._seen and self._breaker.reason is None:
            return True
        if await self._call_primary(partial(self._primary.size_of, name)) == size:
            self._seen[name] = True
            return True
        if fault is not None:
            raise fault
        return False

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        self._absent.pop(record.object_name, None)
        self._put[record.object_name] = True
        try:
            kept = await self._call_primary(partial(self._primary.put, draft, record, replaces))
        except Conflict:
            raise
        except StorageError:
            # What replaces an image waits for a better time: whether it may is only known where that image is.
            if self._fallback is None or replaces is not None:
                raise
            return replace(await self._put_in_fallback(self._fallback, draft, record, replaces), pending=True)
        self._seen[record.object_name] = self._put[record.object_name] = True
        await self._cache.put(draft, record.object_name)
        return kept

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        if self._fallback is not None and record.pending:
            # Its object is in the fallback alone; what was carried over meanwhile is left as it is, and judged anew.
            if await self._fallback.find(record.key) is None:
                raise Conflict("the image was carried to the primary meanwhile")
            return replace(await self._fallback.put_record(record, replaces), pending=True)
        return await self._call_primary(partial(self._primary.put_record, record, replaces))

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        await self._call_primary(partial(self._primary.put_tombstone, tombstone))
        if self._fallback is not None:
            await self._fallback.delete_record(tombstone.key)

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        await self._call_primary(partial(self._primary.block, digest, removed_at, keys))

    async def delete_object(self, digest: Digest) -> None:
        await self._call_primary(partial(self._primary.delete_object, digest))
        await self._forget_here(digest)

    async def _forget_here(self, digest: Digest) -> None:
        await self.drop(digest)
        if self._fallback is not None:
            await self._fallback.delete_object(digest)

    async def list_blocked(self) -> Collection[Digest]:
        return await self._call_primary(self._primary.list_blocked)

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        return await self._call_primary(partial(self._primary.find_block, digest))

    async def unblock(self, digest: Digest) -> None:
        await self._call_primary(partial(self._primary.unblock, digest))

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        # A folder that was a store of its own before may hold some.
        near, fault = await self._look_in_fallback(lambda fallback: fallback.find_tombstone(key))
        if near is not None:
            return near
        found = await self._call_primary(partial(self._primary.find_tombstone, key))
        if found is None and fault is not None:
            raise fault
        return found

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        await self._call_primary(partial(self._primary.delete_tombstone, tombstone))
        if self._fallback is not None:
            await self._fallback.delete_tombstone(tombstone)

    async def has_object(self, digest: Digest) -> bool:
        near, fault = await self._look_in_fallback(lambda fallback: _yes(fallback.has_object(digest)))
        if near or await self._call_primary(partial(self._primary.has_object, digest)):
            return True
        if fault is not None:
            raise fault
        return False

    async def drop(self, digest: Digest) -> None:
        """A picture is refused, here or on another node: forget where it was, and our copy of it."""
        for name in object_names(digest):
            self._seen.pop(name, None)
        await self._cache.delete(digest)

    async def has(self, name: str) -> bool:
        """Whether the primary can be reached and was seen to have the object lately; asks it, if need be."""
        if self._breaker.reason is not None:
            return False
        if name not in self._seen:
            if name in self._absent:
                return False
            task = self._looking.get(name)
            if task is None:
                task = self._looking[name] = asyncio.create_task(self._look_for(name))
                task.add_done_callback(lambda _: self._looking.pop(name, None))
            return await asyncio.shield(task)
        return True

    def note(self, name: str) -> None:
        """The primary was seen to have the object."""
        self._absent.pop(name, None)
        self._seen[name] = True

    async def _call_primary(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Ask the primary, if it can be asked."""
        if self._breaker.reason is not None:
            raise self._fault(f"the primary store is away: {self._breaker.reason}", self._breaker.place)
        try:
            return await verb()
        except RemoteFault as fault:
            self._breaker.report_failure(fault)
            raise self._fault(str(fault), fault.place or self._breaker.place, fault.cause) from None

    def _fault(self, reason: str, place: str, cause: str = "") -> StorageError:
        kind = StorageError if self._fallback is None else Unreachable
        return kind(reason, place=place, cause=cause)

    async def _look_in_fallback(
        self, verb: Callable[[LocalStore], Awaitable[T | None]]
    ) -> tuple[T | None, StorageError | None]:
        """Look in the fallback. One that cannot tell is no reason not to ask the primary."""
        if self._fallback is None:
            return None, None
        try:
            return await verb(self._fallback), None
        except StorageError as fault:
            return None, fault

    async def _put_in_fallback(
        self, fallback: LocalStore, draft: Draft, record: Record, replaces: Digest | None
    ) -> Record:
        if fallback.disk.owns(draft):
            return await fallback.put(draft, record, replaces)
        copy = await fallback.disk.begin(draft.size)
        try:
            while piece := await draft.read(copy.size, 1_048_576):
                await copy.write(piece)
            return await fallback.put(copy, record, replaces)
        finally:
            await copy.aclose()

    async def _look_for(self, name: str) -> bool:
        """Ask the primary whether it has an object, with one request; that it has none is remembered for `fetch`."""
        try:
            there = await self._call_primary(partial(self._primary.has, name))
        except StorageError:
            return False
        if there:
            self._seen[name] = True
        else:
            self._note_absent(name)
        return there

    def _note_absent(self, name: str) -> None:
        # An answer from before a put of ours may come after it.
        if name not in self._put:
            self._absent[name] = True

    async def _look(self, key: Key) -> Record | None:
        near, fault = await self._look_in_fallback(lambda fallback: fallback.find(key))
        if near is not None:
            return replace(near, pending=True)
        record = await self._call_primary(partial(self._primary.find, key))
        if record is None and fault is not None:
            raise fault
        return record

    def _asked(self, key: Key, task: asyncio.Task[Record | None]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all who waited may have left


async def _yes(answer: Awaitable[bool]) -> bool | None:
    """Turn `no` into a miss."""
    return await answer or None
