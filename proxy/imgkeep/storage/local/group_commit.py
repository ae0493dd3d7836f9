"""
Group commit: small images that arrive while the disk is busy become durable together.

One image costs four fsyncs, each of which makes the disk flush its own cache. Under load they are grouped: all bodies
and records of a group are written without names, made durable by one call, given their names, and made durable by one
more. So the order for each image is that of `atomic_files`, and no caller returns before the second call has:

    write, sync, name the object, name the record, sync

The objects of a group get their names before any of its records does. File systems that keep a journal of names make
them durable in that order, so a power loss between the two calls leaves objects without records, never the opposite.

Files begin without a name (`O_TMPFILE`, man 2 open), so a crash before they are named leaves nothing behind. `syncfs`
reports failures since Linux 5.8; on older systems, and on file systems without unnamed files, images are stored one by
one (`LocalStore`).
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
from imgkeep.core.confirmation import adopt
from imgkeep.core.errors import ImgkeepError
from imgkeep.core.layout import encode_record, object_path, record_path
from imgkeep.storage.local import atomic_files
from imgkeep.storage.local.executor import fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.core.records import Digest, Record

GROUP_MAX: Final = 64
"""Maximum number of images in a group: more would delay the first, and every file of a group is open."""
SYNCED_BY_FILE_MAX: Final = 3
"""Maximum size of a group that is synced file by file: `syncfs` also waits for the writes of other programs."""
SLOW_SYNC_S: Final = 0.5
"""Maximum duration of a `syncfs` on a disk to which no other program writes much."""
SYNC_BY_FILE_S: Final = 60
"""Time after a slow `syncfs` for which images are synced file by file."""
SYNCFS_REPORTS: Final = (5, 8)
"""First kernel whose `syncfs` reports failed writes."""


@dataclass(slots=True)
class PendingImage:
    """
    An image to be stored, and the future of its caller.

    Attributes:
        record: The record that is going to stand.
        seen: The record of the same image that another fill has stored first.
        fault: The error that prevented it.
    """

    body: bytes
    record: Record
    replaces: Digest | None
    stored: asyncio.Future[Record]
    encoded: bytes
    seen: Record | None = None
    fault: Exception | None = None
    descriptors: tuple[int, ...] = ()

    @property
    def is_adopted(self) -> bool:
        """Whether the record that is there stays as it is."""
        return self.seen == self.record


class GroupCommit:
    """
    Stores small images under `root` in groups.

    Args:
        run: Runs blocking work in a thread of the disk.
        require_replaceable: `StoreFiles.require_replaceable`, which raises if a record must stay.
    """

    def __init__(
        self,
        root: Path,
        run: Callable[[Callable[[Sequence[PendingImage]], None], Sequence[PendingImage]], Awaitable[None]],
        require_replaceable: Callable[[Path, Digest, Digest | None], Record | None],
    ) -> None:
        self.is_available = False
        self._root = str(root)
        self._place = f"folder {absolute(root)}"
        self._partial = root / "partial"
        self._run = run
        self._require_replaceable = require_replaceable
        self._waiting: list[PendingImage] = []
        self._task: asyncio.Task[None] | None = None
        self._syncfs: Callable[[int], int] | None = None
        self._by_file_until = -math.inf

    def open(self) -> None:
        """Find out whether this system and file system support it. Blocks; the root has to be there."""
        version = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdecimal())
        if sys.platform != "linux" or version < SYNCFS_REPORTS:
            return
        with suppress(OSError, AttributeError):
            self._syncfs = ctypes.CDLL(None, use_errno=True).syncfs
            descriptor = self._create(b"")
            try:
                atomic_files.name_over(descriptor, self._partial, str(probe := self._partial / token_hex(8)))
                atomic_files.remove(probe)
            finally:
                os.close(descriptor)
            self.is_available = True

    async def put(self, body: bytes, record: Record, replaces: Digest | None) -> Record:
        """Store an image; durable on return. As `Store.put`."""
        stored: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._waiting.append(PendingImage(body, record, replaces, stored, encode_record(record)))
        if self._task is None:
            self._task = asyncio.create_task(self._store_all())
        return await asyncio.shield(stored)

    async def _store_all(self) -> None:
        """Store group after group: images that arrive meanwhile are in the next one."""
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                await self._store_group(group)
        finally:
            self._task = None

    async def _store_group(self, group: Sequence[PendingImage]) -> None:
        failure: Exception | None = None
        try:
            await self._run(self._store, group)
        except Exception as error:  # noqa: BLE001 - the callers get it, whatever it is
            failure = error
        for each in group:
            reason = failure or each.fault
            if reason is None:
                each.stored.set_result(each.record)
            else:
                each.stored.set_exception(fault(reason, self._place) if isinstance(reason, OSError) else reason)
                each.stored.exception()  # marks it as retrieved: its caller may have left

    def _store(self, group: Sequence[PendingImage]) -> None:
        """Store a group. Blocks. A failure of one image sets the `fault` of that image alone."""
        # Opened before the writes: `syncfs` reports the failures since then, on the file system of the store.
        together = len(group) > SYNCED_BY_FILE_MAX and time.monotonic() > self._by_file_until
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

    def _write(self, each: PendingImage) -> None:
        record = self._record_path(each)
        if atomic_files.exists(record):
            self._adopt(each, Path(record))
        for data in (each.body,) if each.is_adopted else (each.body, each.encoded):
            each.descriptors = (*each.descriptors, self._create(data))

    def _adopt(self, each: PendingImage, path: Path) -> None:
        """Adopt the record of the same image, if another fill has stored it first. Raises as `require_replaceable`."""
        standing = self._require_replaceable(path, each.record.digest, each.replaces)
        adopted = None if standing is None or each.replaces is not None else adopt(standing, each.record)
        if adopted is not None:
            each.seen, each.record, each.encoded = standing, adopted, encode_record(adopted)

    def _name_object(self, each: PendingImage) -> None:
        path = self._object_path(each)
        if not atomic_files.name_new(each.descriptors[0], path):
            # Another link has stored these bytes, or the stored ones are damaged; the new ones are verified.
            atomic_files.name_over(each.descriptors[0], self._partial, path)

    def _name_record(self, each: PendingImage) -> None:
        path = self._record_path(each)
        if each.is_adopted or atomic_files.name_new(each.descriptors[1], path):
            return
        standing = self._require_replaceable(Path(path), each.record.digest, each.replaces)
        other = standing if each.replaces is None and standing != each.seen else None
        if other is not None and other.object_name == each.record.object_name:
            each.record = other  # another fill has stored it meanwhile
            return
        atomic_files.name_over(each.descriptors[1], self._partial, path)

    def _sync(self, group: Sequence[PendingImage], root: int | None, one: Callable[[PendingImage], None]) -> None:
        """Make the group durable: image by image or, where the `root` is open, at once."""
        if root is None:
            for each in group:
                _attempt(one, each)
            return
        assert self._syncfs is not None
        start = time.monotonic()
        failed = self._syncfs(root) != 0
        if time.monotonic() - start > SLOW_SYNC_S:
            self._by_file_until = time.monotonic() + SYNC_BY_FILE_S
        if failed:
            for each in group:
                each.fault = each.fault or OSError(ctypes.get_errno(), "")

    def _sync_names(self, each: PendingImage) -> None:
        atomic_files.sync_folder(Path(self._object_path(each)).parent)
        atomic_files.sync_folder(Path(self._record_path(each)).parent)

    def _create(self, data: bytes) -> int:
        """Write a file without a name and return its descriptor."""
        descriptor = os.open(self._partial, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644)
        try:
            atomic_files.write_all(descriptor, data)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    # Names are strings here: making a `Path` of each costs as much as naming the file.

    def _object_path(self, each: PendingImage) -> str:
        return f"{self._root}/{object_path(each.record.object_name)}"

    def _record_path(self, each: PendingImage) -> str:
        return f"{self._root}/{record_path(each.record.key)}"


def _attempt(step: Callable[[PendingImage], None], each: PendingImage) -> None:
    if each.fault is None:
        try:
            step(each)
        except (OSError, ImgkeepError) as error:
            each.fault = error


def _sync_files(each: PendingImage) -> None:
    for descriptor in each.descriptors:
        os.fsync(descriptor)
