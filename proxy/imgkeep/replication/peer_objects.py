"""
The objects that wait in the fallbacks of other nodes, as far as the database tells.

While the primary is away, and until such an object is uploaded, this node reads it from that node. A database
that is away knows of no object elsewhere: what the primary says stands then.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgkeep.core.errors import Busy, StorageError, Unreachable
from imgkeep.core.records import Digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.database import Outbox
    from imgkeep.storage.interfaces import Body


class PeerObjects:
    """
    Finds objects in the fallbacks of other nodes.

    Args:
        outbox: Tells which nodes have an object.
        fetch: Opens an object at a node; `None`: it is not there. Raises `StorageError` or `Busy`.
    """

    def __init__(self, outbox: Outbox, fetch: Callable[[str, str], Awaitable[Body | None]]) -> None:
        self._outbox = outbox
        self._fetch = fetch

    async def fetch(self, name: str) -> Body | None:
        """
        Open the object `<digest>.<ext>` at a node that has it; `None`: no other node does.

        Raises:
            Unreachable: No node that has it can be reached.
        """
        fault: StorageError | None = None
        for node in await self._list_holders(name):
            try:
                body = await self._fetch(node, name)
            except (StorageError, Busy) as error:
                reason = error.in_full if isinstance(error, StorageError) else str(error)
                fault = Unreachable(
                    "the image waits on another node, which cannot be reached", place=node, cause=reason
                )
                continue
            if body is not None:
                return body
        if fault is not None:
            raise fault
        return None

    async def holds(self, name: str) -> bool:
        """Tell whether another node has an object, whether it can be reached or not."""
        return bool(await self._list_holders(name))

    async def _list_holders(self, name: str) -> Sequence[str]:
        with suppress(StorageError):
            return await self._outbox.holders(Digest(name.partition(".")[0]))
        return ()
