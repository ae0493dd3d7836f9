"""
Copying one store to another: all objects, then all records, so that a record there always finds its object.

Rules:
- The two are compared folder by folder (`v1/objects/ab`), because not every store lists in the order of the names; what
  is there already is not copied again, so whoever was interrupted starts anew and goes on.
- The source is only read. An object counts only if its bytes have the digest that it is named by.
- A record there stays, whatever it names; one whose object could not be copied stays behind with it.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.core.errors import Conflict, Removed, StorageError
from imgkeep.core.layout import OBJECTS, RECORDS, RecordTooNew, object_path, read_object_name, record_path
from imgkeep.core.records import Record, Tombstone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine

    from imgkeep.clock import Clock
    from imgkeep.storage.interfaces import ListableStore, Spool

    Fate = Literal["copied", "skipped", "kept", "damaged", "failed", "gone"]

AT_ONCE: Final = 4
FAILURES_MAX: Final = 20
"""So many failures in a row are not about single images: one of the stores is away, or full."""

_FOLDER: Final = re.compile(f"({OBJECTS}|{RECORDS})/[0-9a-f]{{2}}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What became of an object or a record, by its path in the stored layout.

    `copied`. `skipped`: an object that the target had. `kept`: a record that the target had. `damaged`: not what was
    stored, or what it needs is not. `failed`: a store failed. `gone`: it was removed since its folder was listed.
    """

    fate: Fate
    path: str
    reason: str = ""


class Migration:
    """Copies `source` to `target`; `spool` takes what lies on no disk on its way."""

    def __init__(self, source: ListableStore, target: ListableStore, spool: Spool, clock: Clock) -> None:
        self._clock = clock
        self._source = source
        self._target = target
        self._spool = spool
        self._folders: list[str] = []
        self._left_behind: dict[str, Fate] = {}
        self._failures = 0

    async def count(self) -> int:
        """
        List the source and return how many objects and records it has.

        Raises:
            StorageError: It cannot be listed.
        """
        counts: Counter[str] = Counter()
        for kind in (OBJECTS, RECORDS):
            async for path, _ in self._source.walk(kind):
                counts[path[: len(kind) + 3]] += 1
        # What lies elsewhere is none of ours.
        self._folders = sorted(folder for folder in counts if _FOLDER.fullmatch(folder))
        return sum(counts[folder] for folder in self._folders)

    async def run(self) -> AsyncGenerator[Outcome]:
        """
        Copy what was counted, and tell of each.

        Raises:
            StorageError: A store cannot be listed, or failed too often in a row.
        """
        await self._copy_blocks()
        for kind in (OBJECTS, RECORDS):  # nothing of a kind is under way when the next begins
            running: set[asyncio.Task[Outcome]] = set()
            try:
                async for path, there in self._compare(kind):
                    if there:
                        yield Outcome("skipped" if kind == OBJECTS else "kept", path)
                        continue
                    if len(running) == AT_ONCE:
                        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            yield self._judge(task.result())
                    copy = self._copy_object if kind == OBJECTS else self._copy_record
                    running.add(asyncio.create_task(self._try(copy(path), path)))
                while running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield self._judge(task.result())
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _copy_blocks(self) -> None:
        """Block there what is blocked here, with the keys that an undo needs."""
        for digest in set(await self._source.list_blocked()) - set(await self._target.list_blocked()):
            keys = await self._source.find_block(digest)
            if keys is not None:
                await self._target.block(digest, self._clock().replace(microsecond=0), keys)
                await self._target.delete_object(digest)

    async def _compare(self, kind: str) -> AsyncIterator[tuple[str, bool]]:
        """Yield the paths of the source, and whether the target has each."""
        for folder in self._folders:
            if folder.startswith(kind):
                # A folder of 256 at a time: that much fits into memory, and needs no order.
                theirs = {path: size async for path, size in self._target.walk(folder)}
                async for path, size in self._source.walk(folder):
                    yield path, path in theirs and (kind == RECORDS or theirs[path] == size)

    def _judge(self, outcome: Outcome) -> Outcome:
        if outcome.fate in {"damaged", "failed"} and outcome.path.startswith(OBJECTS):
            self._left_behind[outcome.path] = outcome.fate
        if self._failures >= FAILURES_MAX:
            raise StorageError(f"gave up after {self._failures} failures in a row; the last: {outcome.reason}")
        return outcome

    async def _try(self, copying: Coroutine[None, None, Outcome], path: str) -> Outcome:
        try:
            outcome = await copying
        except StorageError as fault:
            self._failures += 1
            return Outcome("failed", path, fault.in_full)
        self._failures = 0
        return outcome

    async def _copy_object(self, path: str) -> Outcome:
        name = path.rpartition("/")[2]
        read = read_object_name(name)
        if read is None or path != object_path(name):
            return Outcome("damaged", path, "this is not the name of an object")
        draft = await self._source.open_draft(name, self._spool)
        if draft is None:
            return Outcome("gone", path)
        try:
            if draft.digest != read[0]:
                return Outcome("damaged", path, "the bytes are not those that were stored")
            await self._target.put_object(draft, name)
        finally:
            await draft.aclose()
        return Outcome("copied", path)

    async def _copy_record(self, path: str) -> Outcome:  # noqa: PLR0911 - one for each fate
        for _, record in await self._source.read_records([path]):
            if isinstance(record, Tombstone):
                await self._target.put_tombstone(record)
                return Outcome("copied", path)
            if isinstance(record, RecordTooNew):
                return Outcome("failed", path, str(record))
            if not isinstance(record, Record) or record_path(record.key) != path:
                return Outcome("damaged", path, "the record is not readable")
            fate = self._left_behind.get(object_path(record.object_name))
            if fate is not None:
                return Outcome(fate, path, "its object was not copied")
            try:
                await self._target.put_record(record)
            except (Conflict, Removed):
                return Outcome("kept", path)
            return Outcome("copied", path)
        return Outcome("gone", path)
