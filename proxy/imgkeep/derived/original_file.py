"""
The original as an open file, for a derive process to map.

A file of the local disk is passed as it is. Bytes from memory or from a bucket are written to a draft first, under the
limits of every draft.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.storage.local.body import LocalBody
from imgkeep.storage.local.draft import LocalDraft

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.storage.interfaces import Body, Draft, Spool

PIECE_BYTES: Final = 262_144
"""Size of the pieces in which originals and pictures are copied."""


@asynccontextmanager
async def open_original(body: Body, spool: Spool) -> AsyncGenerator[int]:
    """
    Yield the descriptor of a file with the bytes of an original, and close the body at the end.

    The descriptor may share its offset with readers, so its user maps the file and does not read it.

    Raises:
        StorageError: The bytes cannot be read, or the disk has no room for them.
    """
    try:
        if isinstance(body, LocalBody):
            yield body.descriptor
            return
        draft = await spool.begin(body.size)
        try:
            yield await _copy(body, draft)
        finally:
            await draft.aclose()
    finally:
        await body.aclose()


async def _copy(body: Body, draft: Draft) -> int:
    """Copy the bytes of a body into the file of a draft, and return its descriptor."""
    while piece := await body.read(draft.size, PIECE_BYTES):
        await draft.write(piece)
    if draft.size != await body.wait_for_size():
        raise StorageError("the original is shorter than its size: verify the store with `imgkeep verify`")
    await draft.share_file()
    descriptor = draft.descriptor if isinstance(draft, LocalDraft) else None
    if descriptor is None:
        raise StorageError(
            "the local disk cannot take the original, of which a picture is made: free some of its space"
        )
    return descriptor
