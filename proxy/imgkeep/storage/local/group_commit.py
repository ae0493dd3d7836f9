"""
Keeping many small images at once: what waits while the disk works is made durable together.

One image costs four fsyncs, each of which makes the disk flush its own cache. Under load they are grouped: all bodies
and records of a group are written without names, made durable by one call, given their names, and made durable by one
more. So the order is the one of `files.py` for each image, and nobody is told before the second call returned:

    write, sync, name the object, name the record, sync

The objects of a group get their names before any of its records does. File systems that keep a journal of names make
them durable in that order, so a power loss between the two calls leaves objects without records, never the opposite.

Files begin without a name (`O_TMPFILE`, man 2 open), so whatever happens before they are named leaves nothing behind.
`syncfs` reports failures since Linux 5.8; where it cannot be relied on, or a file system knows no files without names,
images are kept one by one (`LocalStore`).
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from imgkeep.config import absolute
from imgkeep.core.errors import ImgkeepError
from imgkeep.core.layout import object_path, record_path
from imgkeep.storage.local import atomic_files as files
from imgkeep.storage.local import executor as threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.core.records import Digest, Record

GROUP_MAX: Final = 64
"""Images in a group: more would make the first wait for the last, and every file of a group is open."""
FEW: Final = 3
"""Up to so many images are synced file by file: to sync a whole file system means to wait for what others write."""
LONG_S: Final = 0.5
"""Where that took longer, others write a lot."""
APART_S: Final = 60
"""So long after that every image is synced by itself."""
SYNCFS_REPORTS: Final = (5, 8)
"""The kernel from which on `syncfs` says when something could not be written."""


@dataclass(slots=True)
class Waiting:
    """An image to be kept, and who waits for it. `fault` is why it was not."""

    body: bytes
    record: Record
    replaces: Digest | None
    kept: asyncio.Future[None]
    encoded: bytes
    fault: Exception | None = None
    descriptors: tuple[int, ...] = ()


class GroupCommit:
    """
    Keeps small images under `root` in groups.

    `run` runs blocking work in a thread of the disk; `insist` raises what forbids to write a record in the place of
    another (`LocalStore`).
    """

    def __init__(
        self,
        root: Path,
        run: Callable[[Callable[[Sequence[Waiting]], None], Sequence[Waiting]], Awaitable[None]],
        insist: Callable[[Path, Digest, Digest | None], None],
    ) -> None:
        self.works = False
        self._root = str(root)
        self._place = f"folder {absolute(root)}"
        self._partial = root / "partial"
        self._run = run
        self._insist = insist
        self._waiting: list[Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._syncfs: Callable[[int], int] | None = None
        self._apart_until = -math.inf

    def open(self) -> None:
        """Find out whether this system and file system can do it. Blocks; the root has to be there."""
        version = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdecimal())
        if sys.platform != "linux" or version < SYNCFS_REPORTS:
            return
        with suppress(OSError, AttributeError):
            self._syncfs = ctypes.CDLL(None, use_errno=True).syncfs
            descriptor = self._create(b"")
            try:
                files.name_over(descriptor, self._partial, str(probe := self._partial / token_hex(8)))
                files.remove(probe)
            finally:
                os.close(descriptor)
            self.works = True

    async def put(self, body: bytes, encoded: bytes, record: Record, replaces: Digest | None) -> None:
        """Keep an image; durable on return. Raises as `Store.put`."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(body, record, replaces, kept, encoded))
        if self._task is None:
            self._task = asyncio.create_task(self._keep_all())
        await asyncio.shield(kept)

    async def _keep_all(self) -> None:
        """Keep group after group: whoever comes meanwhile is in the next one."""
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                await self._keep_group(group)
        finally:
            self._task = None

    async def _keep_group(self, group: Sequence[Waiting]) -> None:
        fault: Exception | None = None
        try:
            await self._run(self._keep, group)
        except Exception as error:  # noqa: BLE001 - those who wait are told, whatever it is
            fault = error
        for each in group:
            reason = fault or each.fault
            if reason is None:
                each.kept.set_result(None)
            else:
                each.kept.set_exception(threads.fault(reason, self._place) if isinstance(reason, OSError) else reason)
                each.kept.exception()  # marks it as retrieved: who waited may have left

    def _keep(self, group: Sequence[Waiting]) -> None:
        """Keep a group. Blocks. What goes wrong with one image is its own `fault`, and no other's."""
        # Opened before anything is written: `syncfs` tells of what failed since, and in the place where we write.
        together = len(group) > FEW and time.monotonic() > self._apart_until
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if together else None
        try:
            for each in group:
                _attempt(self._write, each)
            self._sync(group, root, _sync_files)
            for each in group:
                _attempt(self._name_object, each)
            for each in group:
                _attempt(self._name_record, each)
            self._sync(group, root, self._sync_names)
        finally:
            if root is not None:
                os.close(root)
            for each in group:
                for descriptor in each.descriptors:
                    os.close(descriptor)

    def _write(self, each: Waiting) -> None:
        record = self._record_path(each)
        if files.exists(record):
            self._insist(Path(record), each.record.digest, each.replaces)
        for data in (each.body, each.encoded):
            each.descriptors = (*each.descriptors, self._create(data))

    def _name_object(self, each: Waiting) -> None:
        path = self._object_path(each)
        if not files.name_new(each.descriptors[0], path):
            # The same bytes by another link, or what was damaged: these are certainly good.
            files.name_over(each.descriptors[0], self._partial, path)

    def _name_record(self, each: Waiting) -> None:
        path = self._record_path(each)
        if not files.name_new(each.descriptors[1], path):
            self._insist(Path(path), each.record.digest, each.replaces)
            files.name_over(each.descriptors[1], self._partial, path)

    def _sync(self, group: Sequence[Waiting], root: int | None, one: Callable[[Waiting], None]) -> None:
        """Make durable what was done: one by one or, where the `root` is open, all at once."""
        if root is None:
            for each in group:
                _attempt(one, each)
            return
        assert self._syncfs is not None
        start = time.monotonic()
        failed = self._syncfs(root) != 0
        if time.monotonic() - start > LONG_S:
            self._apart_until = time.monotonic() + APART_S
        if failed:
            for each in group:
                each.fault = each.fault or OSError(ctypes.get_errno(), "")

    def _sync_names(self, each: Waiting) -> None:
        files.sync_folder(Path(self._object_path(each)).parent)
        files.sync_folder(Path(self._record_path(each)).parent)

    def _create(self, data: bytes) -> int:
        """Write a file without a name and return its descriptor."""
        descriptor = os.open(self._partial, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644)
        try:
            files.write_all(descriptor, data)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    # Names are text here: to make a path of each costs as much as to give a file its name.

    def _object_path(self, each: Waiting) -> str:
        return f"{self._root}/{object_path(each.record.object_name)}"

    def _record_path(self, each: Waiting) -> str:
        return f"{self._root}/{record_path(each.record.key)}"


def _attempt(step: Callable[[Waiting], None], each: Waiting) -> None:
    if each.fault is None:
        try:
            step(each)
        except (OSError, ImgkeepError) as error:
            each.fault = error


def _sync_files(each: Waiting) -> None:
    for descriptor in each.descriptors:
        os.fsync(descriptor)
