"""
Migration of one store to another: first all objects, then all records, so that a record of the target always finds its
object.

Rules:
- The two stores are compared folder by folder (`v1/objects/ab`), because not every store lists in the order of names.
  Objects and records of the target are not copied again, so the next migration continues an interrupted one.
- The source is only read. An object is copied only if its bytes have the digest that names it.
- What is foreign below `v1/objects` and `v1/records` is reported and left alone, as `verify` does.
- A record of the target stays, whatever it names. A record whose object could not be copied is not copied either.
- The object of a blocked digest is not copied, whichever of the two stores blocks it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.core.errors import Conflict, Removed, StorageError
from imgkeep.core.layout import OBJECTS, RECORDS, RecordTooNew, is_own_path, object_path, record_path
from imgkeep.core.records import Digest, Record, Tombstone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine

    from imgkeep.clock import Clock
    from imgkeep.storage.interfaces import ListableStore, Spool

    CopyOutcome = Literal["copied", "skipped", "kept", "damaged", "failed", "gone", "foreign"]

COPIES_CONCURRENT_MAX: Final = 4
FAILURES_MAX: Final = 20
"""Maximum number of failures in a row: more are not about single images, because a store is unreachable or full."""

FOREIGN_MAX: Final = 10_000
"""Maximum number of foreign paths that are reported: a bucket may be another program's, too."""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """
    The result for an object or a record, by its path in the stored layout.

    `copied`. `skipped`: the target had the object. `kept`: the target had the record. `damaged`: the bytes are not what
    was stored, or the record's object is damaged. `failed`: a store failed. `gone`: it was removed since its folder was
    listed, or its digest is blocked. `foreign`: the path is none of the stored layout.
    """

    outcome: CopyOutcome
    path: str
    reason: str = ""


class Migration:
    """A copy of `source` to `target`; `spool` holds the objects that are on no disk while they are copied."""

    def __init__(self, source: ListableStore, target: ListableStore, spool: Spool, clock: Clock) -> None:
        self._clock = clock
        self._source = source
        self._target = target
        self._spool = spool
        self._folders: list[str] = []
        self._foreign: list[str] = []
        self._left_behind: dict[str, CopyOutcome] = {}
        self._blocked: set[Digest] = set()
        self._failures = 0

    async def count(self) -> int:
        """
        List the source and return the number of its objects and records, foreign ones included.

        Raises:
            StorageError: The source cannot be listed.
        """
        counts: Counter[str] = Counter()
        for kind in (OBJECTS, RECORDS):
            async for path, _ in self._source.walk(kind):
                if is_own_path(path):
                    counts[path[: len(kind) + 3]] += 1
                elif len(self._foreign) < FOREIGN_MAX:
                    self._foreign.append(path)
        self._folders = sorted(counts)
        return counts.total() + len(self._foreign)

    async def run(self) -> AsyncGenerator[CopyResult]:
        """
        Copy the counted objects and records, and yield the result of each.

        Raises:
            StorageError: A store cannot be listed, or failed too often in a row.
        """
        for path in self._foreign:
            yield CopyResult("foreign", path)
        await self._copy_blocks()
        for kind in (OBJECTS, RECORDS):  # one kind is complete before the next begins
            running: set[asyncio.Task[CopyResult]] = set()
            try:
                async for path, there in self._compare(kind):
                    if there:
                        yield CopyResult("skipped" if kind == OBJECTS else "kept", path)
                        continue
                    if len(running) == COPIES_CONCURRENT_MAX:
                        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            yield self._count_failure(task.result())
                    copy = self._copy_object if kind == OBJECTS else self._copy_record
                    running.add(asyncio.create_task(self._try(copy(path), path)))
                while running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield self._count_failure(task.result())
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _copy_blocks(self) -> None:
        """Copy the blocks of digests, with the keys that an undo needs; the target deletes the objects."""
        ours, theirs = set(await self._source.list_blocked()), set(await self._target.list_blocked())
        self._blocked = ours | theirs
        for digest in ours - theirs:
            keys = await self._source.find_block(digest)
            if keys is not None:
                await self._target.block(digest, self._clock().replace(microsecond=0), keys)
                await self._target.delete_object(digest)

    async def _compare(self, kind: str) -> AsyncIterator[tuple[str, bool]]:
        """Yield each path of the source, and whether the target has it."""
        for folder in self._folders:
            if folder.startswith(kind):
                # One folder of 256 at a time: its listing fits into memory and needs no order.
                theirs = {path: size async for path, size in self._target.walk(folder)}
                async for path, size in self._source.walk(folder):
                    if not is_own_path(path):
                        continue  # reported by its first listing
                    yield path, path in theirs and (kind == RECORDS or theirs[path] == size)

    def _count_failure(self, result: CopyResult) -> CopyResult:
        """Remember an object that was not copied, and give up after too many failures in a row."""
        if result.outcome in {"damaged", "failed"} and result.path.startswith(OBJECTS):
            self._left_behind[result.path] = result.outcome
        if self._failures >= FAILURES_MAX:
            raise StorageError(f"gave up after {self._failures} failures in a row; the last: {result.reason}")
        return result

    async def _try(self, copying: Coroutine[None, None, CopyResult], path: str) -> CopyResult:
        try:
            result = await copying
        except StorageError as fault:
            self._failures += 1
            return CopyResult("failed", path, fault.in_full)
        self._failures = 0
        return result

    async def _copy_object(self, path: str) -> CopyResult:
        name = path.rpartition("/")[2]
        if name.partition(".")[0] in self._blocked:
            return CopyResult("gone", path, "it was removed")
        draft = await self._source.open_draft(name, self._spool)
        if draft is None:
            return CopyResult("gone", path)
        try:
            if draft.digest != name.partition(".")[0]:
                return CopyResult("damaged", path, "the bytes are not those that were stored")
            await self._target.put_object(draft, name)
        finally:
            await draft.aclose()
        return CopyResult("copied", path)

    async def _copy_record(self, path: str) -> CopyResult:  # noqa: PLR0911 - one for each outcome
        for _, record in await self._source.read_records([path]):
            if isinstance(record, Tombstone):
                await self._target.put_tombstone(record)
                return CopyResult("copied", path)
            if isinstance(record, RecordTooNew):
                return CopyResult("failed", path, str(record))
            if not isinstance(record, Record) or record_path(record.key) != path:
                return CopyResult("damaged", path, "the record is not readable")
            outcome = self._left_behind.get(object_path(record.object_name))
            if outcome is not None:
                return CopyResult(outcome, path, "its object was not copied")
            try:
                await self._target.put_record(record)
            except (Conflict, Removed):
                return CopyResult("kept", path)
            return CopyResult("copied", path)
        return CopyResult("gone", path)
