"""Derived pictures in a store: what `derived/picture_store.py` needs of it, in a folder as in a bucket."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.records import Digest
    from imgkeep.storage.interfaces import Body, Draft


class PictureFiles(ABC):
    """
    The pictures in one store. A miss is no fault.

    Each method raises `StorageError` where the store fails, and may raise `Busy`.
    """

    @abstractmethod
    async def fetch(self, name: PictureName) -> Body | None:
        """Open a picture; `None`: it is not there."""

    @abstractmethod
    async def has(self, name: PictureName) -> bool:
        """Tell whether a picture is there."""

    @abstractmethod
    async def put(self, draft: Draft, name: PictureName) -> None:
        """
        Store a picture: whole or not at all.

        Raises:
            Removed: Its original was removed.
        """

    @abstractmethod
    async def count(self, digest: Digest, most: int) -> int:
        """Return the number of pictures of an original; the count may end at `most`."""

    @abstractmethod
    async def delete_all(self, digest: Digest) -> None:
        """Delete all pictures of an original."""
