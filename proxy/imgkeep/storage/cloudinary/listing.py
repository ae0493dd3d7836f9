"""
Listings that are read on from folder to folder.

`imgkeep migrate` compares stores folder by folder (`v1/objects/ab`), 256 of a kind. The Admin API has few requests an
hour, and a page holds 500 assets, so a page that ends in a later folder serves the later folder too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.core.layout import OBJECTS, RECORDS
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Entry = tuple[str, int]
    """A path and its size in bytes."""

_FOLDER: Final = re.compile(rf"({OBJECTS}|{RECORDS})/[0-9a-f]{{2}}")


def folder_above(folder: str) -> str | None:
    """Return the folder whose listing serves a folder; `None`: a listing of its own."""
    match = _FOLDER.fullmatch(folder)
    return None if match is None else match[1]


class SortedListing:
    """A listing in the order of the paths, of which one folder after the other is read."""

    def __init__(self, entries: AsyncIterator[Entry]) -> None:
        self._entries = entries
        self._ahead: Entry | None = None
        self._last = ""
        self._position = ""

    def has_passed(self, prefix: str) -> bool:
        """Tell whether a folder can no longer be read."""
        return self._position >= prefix

    async def read(self, prefix: str) -> AsyncIterator[Entry]:
        """
        Yield the entries whose path has a prefix.

        Raises:
            BucketError: The service lists in another order than it says, so a folder could be missed.
        """
        self._position = prefix
        while (entry := self._ahead or await self._next()) is not None:
            is_later = entry[0] > prefix and not entry[0].startswith(prefix)
            self._ahead = entry if is_later else None
            if is_later:
                return
            if entry[0].startswith(prefix):
                yield entry

    async def _next(self) -> Entry | None:
        entry = await anext(self._entries, None)
        if entry is not None:
            if entry[0] < self._last:
                raise BucketError("Cloudinary does not list in the order of public IDs", general=False)
            self._last = entry[0]
        return entry
