"""
The read-through cache of a remote store: objects on the local disk, the least recently used leaving first.

Rules:
- Nothing here is the truth: a file is believed only when its bytes are those its name says, so none of them is fsynced
  and any of them may vanish.
- The index is for leaving only. What lies in the folder is found without it, so a restarted process has all its copies
  at once and counts them in the background.
- Of several workers each counts what lies in its share of the folders, and removes there alone, so that every copy is
  counted once. Who brings or uses one of another's share says so, in batches (`_Share`).
- It lies on the disk of the fallback, so that an image moves between the two without being copied, and it gives way
  when new images need the room.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import object_names
from imgkeep.storage.local import atomic_files as files
from imgkeep.storage.local.draft import LocalBody, LocalDraft
from imgkeep.storage.local.store import HASHED_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from imgkeep.core.records import Digest, Record
    from imgkeep.storage.interfaces import Body, Draft
    from imgkeep.storage.local.store import LocalStore

FOLDER: Final = "cache"
BATCH: Final = 1000
TELL_EVERY_S: Final = 1
ENTRIES_MAX: Final = 250_000
"""The index takes some 250 bytes each, 60 MB; with images of a megabyte, `store.cache_bytes_max` is reached sooner."""


@dataclass(frozen=True, slots=True)
class CacheShare:
    """One worker's among several. `tell` takes names and sizes of copies to whose share they are."""

    slot: int
    workers: int
    tell: Callable[[Mapping[str, int]], Awaitable[None]]

    def includes(self, number: int) -> bool:
        """Whether one of the 256 folders is ours."""
        return number % self.workers == self.slot


class DiskCache:
    """
    Copies on the disk of a local store; `bytes_max` 0 keeps nothing.

    `share`: of several workers; `bytes_max` is then what this one counts.
    """

    def __init__(
        self, disk: LocalStore, bytes_max: int, *, free_bytes_min: int = 0, share: CacheShare | None = None
    ) -> None:
        self._share = share
        self._others: OrderedDict[str, int] = OrderedDict()
        """Copies in the shares of others that we have brought or read: they need not be doubted."""
        self._told: dict[str, int] = {}
        """Of these, what is still to be told."""
        self._telling: asyncio.Task[None] | None = None
        self._disk = disk
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """By name; the one that leaves next comes first."""
        self._doubted: set[str] = set()
        """Large ones that were there at start: read whole once before they are believed."""
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._count: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to count what is there. The disk has to be open."""
        self._count = asyncio.create_task(self._count_all())

    async def aclose(self) -> None:
        for task in (self._count, self._telling):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def counted(self) -> None:
        """Wait until all that was there at start is counted."""
        if self._count is not None:
            await asyncio.shield(self._count)

    async def fetch(self, name: str, size: int | None) -> Body | None:
        try:
            body = await self._disk.fetch_at(_path(name), name, size, is_copy=True)
            if isinstance(body, LocalBody) and (name in self._doubted or not self._knows(name)):
                body = await self._judge(name, body)
        except StorageError:
            body = None
        if body is None:
            self.misses += 1
            self._forget(name)
        else:
            self.hits += 1
            if name in self._sizes:
                self._sizes.move_to_end(name)
            elif body.size is not None:
                await self._note(name, body.size)  # left by an earlier process, and not counted yet
        return body

    async def begin(self, size: int | None) -> LocalDraft:
        try:
            return await self._disk.begin(size)
        except StorageError:
            if not await self._make_room(size or 0):
                raise
        return await self._disk.begin(size)

    async def open_shared(self, path: Path) -> LocalBody | None:
        return await self._disk.open_shared(path)

    async def drop(self, digest: Digest) -> None:
        names = object_names(digest)
        for name in names:
            self._forget(name)
        with suppress(StorageError):
            await self._disk.forget_at([_path(name) for name in names])

    async def keep(self, draft: Draft, name: str) -> None:
        if not self._bytes_max or not isinstance(draft, LocalDraft) or draft.size > self._bytes_max:
            return
        with suppress(StorageError):
            await self._disk.run(self._move, draft, self._disk.root / _path(name))
            draft.kept = True
            await self._note(name, draft.size)

    async def take(self, record: Record) -> bool:
        name = record.object_name
        place = self._disk.root / _path(name) if record.size <= self._bytes_max else None
        taken = await self._disk.run(self._take, record, place)
        if taken and place is not None:
            await self._note(name, record.size)
        return taken

    def _move(self, draft: LocalDraft, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        draft.make_file()
        draft.path.replace(to)

    def _take(self, record: Record, to: Path | None) -> bool:
        if to is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
        return self._disk.move_out(record, to)

    async def count_copies(self, copies: Mapping[str, int]) -> None:
        """Another worker has brought or used these, by name and size."""
        for name, size in copies.items():
            if self._is_ours(name):
                await self._note(name, size)

    def _is_ours(self, name: str) -> bool:
        return self._share is None or self._share.includes(int(name[:2], 16))

    def _knows(self, name: str) -> bool:
        return name in self._sizes or name in self._others

    def _tell(self, share: CacheShare, name: str, size: int) -> None:
        self._others[name] = self._told[name] = size
        self._others.move_to_end(name)
        if len(self._others) > ENTRIES_MAX:
            self._others.popitem(last=False)
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_all(share))

    async def _tell_all(self, share: CacheShare) -> None:
        try:
            while self._told:
                await asyncio.sleep(TELL_EVERY_S)
                told, self._told = self._told, {}
                with suppress(StorageError):  # counted when that worker starts the next time
                    await share.tell(told)
        finally:
            self._telling = None

    async def _note(self, name: str, size: int) -> None:
        """Count what has come, and let leave what has to."""
        if self._share is not None and not self._is_ours(name):
            self._tell(self._share, name, size)
            return
        self._forget(name)
        self._sizes[name] = size
        self.bytes += size
        await self._shrink(self._bytes_max)

    def _forget(self, name: str) -> None:
        self._doubted.discard(name)
        self._others.pop(name, None)
        self.bytes -= self._sizes.pop(name, 0)

    async def _shrink(self, bytes_max: int) -> None:
        leaving: list[str] = []
        while self._sizes and (self.bytes > bytes_max or len(self._sizes) > ENTRIES_MAX):
            name = next(iter(self._sizes))
            self._forget(name)
            leaving.append(name)
        if leaving:
            await self._disk.run(self._remove, leaving)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            files.remove(self._disk.root / _path(name))

    async def _make_room(self, size: int) -> bool:
        """Let go of copies until there is room for `size` new bytes; return whether anything went."""
        free = await self._disk.run(lambda: shutil.disk_usage(self._disk.root).free)
        lacking = self._free_bytes_min + size - free
        if lacking <= 0 or not self._sizes:
            return False
        await self._shrink(max(0, self.bytes - lacking))
        return True

    async def _judge(self, name: str, body: LocalBody) -> LocalBody | None:
        """Read a large copy of unknown past once: after a power loss it may have its size and nothing else."""
        try:
            if await self._disk.hash_object(_path(name)) == name.partition(".")[0]:
                await self._note(name, body.size)
                return body
            await self._disk.run(self._remove, [name])
        except BaseException:
            await body.aclose()
            raise
        await body.aclose()
        return None

    async def _count_all(self) -> None:
        """Count what was there at start, without holding anything up for long."""
        found: list[tuple[float, str, int]] = []
        with suppress(StorageError):
            for part in await self._disk.run(self._disk.list_parts, FOLDER):
                if self._is_ours(part[-2:]):
                    found += await self._disk.run(self._look, part)
            newest_first = await self._disk.run(lambda: sorted(found, reverse=True))
            for start in range(0, len(newest_first), BATCH):
                self._count_in(newest_first[start : start + BATCH])
                await asyncio.sleep(0)
            await self._shrink(self._bytes_max)

    def _look(self, part: str) -> list[tuple[float, str, int]]:
        """Return when each copy in a folder came or was last read, its name and its size."""
        found: list[tuple[float, str, int]] = []
        with suppress(FileNotFoundError):
            for path in (self._disk.root / part).iterdir():
                with suppress(FileNotFoundError):  # it left while we looked
                    status = path.stat()
                    found.append((max(status.st_mtime, status.st_atime), path.name, status.st_size))
        return found

    def _count_in(self, found: list[tuple[float, str, int]]) -> None:
        for _, name, size in found:
            if name in self._sizes:
                continue  # it came while we counted
            self._sizes[name] = size
            self._sizes.move_to_end(name, last=False)
            self.bytes += size
            if size > HASHED_BYTES_MAX:
                self._doubted.add(name)


def _path(name: str) -> str:
    return f"{FOLDER}/{name[:2]}/{name}"
