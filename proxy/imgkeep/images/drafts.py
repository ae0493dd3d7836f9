"""What several stories do alike: go on with a draft whose disk failed, and take back what was removed meanwhile."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from imgkeep.core.records import Record
    from imgkeep.storage.interfaces import Draft, Spool, Store

PIECE_BYTES: Final = 1_048_576


async def continue_draft(broken: Draft, to: Spool, size: int | None, chunk: bytes) -> Draft:
    """
    Go on elsewhere with what a disk took and the `chunk` that it did not. Readers notice nothing: they read by offset.

    Raises:
        StorageError: There is no room either; nothing is left behind.
    """
    draft = await to.begin(size)
    try:
        while data := await broken.read(draft.size, min(PIECE_BYTES, broken.size - draft.size)):
            await draft.write(data)
        await draft.write(chunk)
    except StorageError:
        await draft.aclose()
        raise
    return draft


async def undo_put(store: Store, record: Record) -> None:
    """Delete what was put while its bytes were being removed. What a fault leaves is never shown."""
    with suppress(StorageError):
        await store.delete_object(record.digest)
