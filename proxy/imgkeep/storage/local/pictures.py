"""Derived pictures in a local store, under `v1/derived/` (`core/derived/names.py`). Any of them can be made again."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from imgkeep.core.derived.names import DERIVED
from imgkeep.core.errors import Removed
from imgkeep.core.layout import REMOVED, block_path
from imgkeep.storage.local import atomic_files, open_files
from imgkeep.storage.local.body import LocalBody
from imgkeep.storage.picture_files import PictureFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.records import Digest
    from imgkeep.storage.interfaces import Body, Draft
    from imgkeep.storage.local.disk import Disk
    from imgkeep.storage.local.store_files import StoreFiles


class LocalPictures(PictureFiles):
    """The pictures in one folder."""

    def __init__(self, disk: Disk, files: StoreFiles) -> None:
        self._disk = disk
        self._files = files

    async def fetch(self, name: PictureName) -> Body | None:
        return await self._disk.run(self._open, self._disk.root / name.path)

    async def has(self, name: PictureName) -> bool:
        return await self._disk.run(os.path.exists, self._disk.root / name.path)

    async def put(self, draft: Draft, name: PictureName) -> None:
        data = bytearray()
        while piece := await draft.read(len(data), open_files.PIECE_BYTES):
            data += piece
        await self._disk.reserve(len(data))
        await self._disk.run(self._put, bytes(data), name)

    async def count(self, digest: Digest, _most: int) -> int:
        return len(await self._disk.run(list_folder, self._folder(digest)))

    async def delete_all(self, digest: Digest) -> None:
        await self._disk.run(shutil.rmtree, self._folder(digest), True)

    async def walk(self) -> AsyncIterator[tuple[str, int]]:
        """Yield path and size of every picture, in the order of the paths."""
        for digest in await self._disk.run(list_folder, self._disk.root / DERIVED):
            for entry in await self._disk.run(self._files.list_folder, f"{DERIVED}/{digest}"):
                yield entry

    def _folder(self, digest: Digest) -> Path:
        return self._disk.root / DERIVED / digest

    def _open(self, path: Path) -> LocalBody | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return LocalBody(descriptor, os.fstat(descriptor).st_size, self._disk.executor)

    def _put(self, data: bytes, name: PictureName) -> None:
        path, partial = self._disk.root / name.path, self._disk.partial_path()
        with atomic_files.durable_partial(partial, data):
            atomic_files.publish(partial, path)
        if self._files.find_block(block_path(name.digest)) is not None:
            atomic_files.remove(path)
            raise Removed(REMOVED)


def list_folder(folder: Path) -> Sequence[str]:
    """Return the names in a folder, in their order; none if it is not there. Blocks."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted
    except FileNotFoundError:
        return ()
