"""
The blocked digests of a bucket, and the marker by which a node finds out with one small request that none has changed.

Rules:
- Every block and every undo is followed by another random token in the marker (`v1/refused/changed`).
- A node reads the token before it lists the blocks, and lists them again when the token differs. So a block that its
  list lacks was put after that list began, and the token of that block comes later than the one that the node has read.
- A service may list a new block late, so a node lists twice after a change.
- A process may die between a block and its token, and an older version writes none. So a node also lists at its start
  and once in `LIST_INTERVAL_S`. If that list shows a change that no token announced, the node writes a token.
- A marker that cannot be read alone (archived, or of another program) costs a list each time, and hides no block.
- No clock of any node decides anything, and no node relies on the marker of another bucket or of a former time: what is
  in it is only compared.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from imgkeep.core.layout import (
    BLOCK_BYTES_MAX,
    BLOCKED,
    BLOCKS_CHANGED,
    block_path,
    encode_block,
    read_block_keys,
    read_block_path,
)
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.records import RECORD_FIELDS

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from imgkeep.core.records import Digest, Key
    from imgkeep.storage.bucket.client import BucketClient

LIST_INTERVAL_S: Final = 3600
"""Interval of the lists that need no token."""
LISTS_PER_CHANGE: Final = 2
PATHS_MAX: Final = 2_000_000
"""Maximum number of paths that a list may have: a digest costs 200 bytes here, and a list may never end."""
TOKEN_BYTES_MAX: Final = 1024
"""Maximum size of the marker; ours has 33 bytes."""
TOKEN_ATTEMPTS_MAX: Final = 3
TOKEN_RETRY_DELAY_S: Final = 1
"""Delay after a failed write: Google Cloud Storage takes one write of the same name a second."""
TOKEN_FIELDS: Final = ObjectFields("text/plain", "no-store")


@dataclass(frozen=True, slots=True)
class _Listed:
    """
    A list of the blocked digests.

    Attributes:
        token: The token before the list; `None`: there was no marker, or it could not be read.
        at: Time of the list, on the loop's clock.
        lists_left: How many more lists the change takes.
    """

    token: bytes | None
    digests: frozenset[Digest]
    at: float
    lists_left: int


class BucketBlockedDigests:
    """The blocked digests of a bucket."""

    def __init__(self, client: BucketClient) -> None:
        self._client = client
        self._listed: _Listed | None = None
        self._lock = asyncio.Lock()
        """For the marker."""
        self._changes = 0
        """Number of the changes of this process, each of which wants a token that is written after it."""
        self._announced = 0
        """How many of them are announced."""

    async def put(self, digest: Digest, removed_at: datetime, keys: Collection[Key]) -> None:
        """As `Store.block`."""
        await self._client.put_bytes(block_path(digest), encode_block(digest, removed_at, keys), RECORD_FIELDS)
        await self._announce()

    async def delete(self, digest: Digest) -> None:
        """As `Store.unblock`."""
        await delete_and_check(self._client, block_path(digest))
        await self._announce()

    async def find(self, digest: Digest) -> Collection[Key] | None:
        """As `Store.find_block`."""
        opened = await self._client.get(block_path(digest))
        return None if opened is None else read_block_keys(await opened.stream.read_all(BLOCK_BYTES_MAX))

    async def list_all(self) -> Collection[Digest]:
        """As `Store.list_blocked`: from memory, unless the token has changed."""
        before = self._listed
        try:
            token = await self._read_token()
            is_announced = before is None or before.token != token
        except BucketError as error:
            if error.general:
                raise
            token, is_announced = None, True
        now = asyncio.get_running_loop().time()
        if before is not None and not is_announced and not before.lists_left and now < before.at + LIST_INTERVAL_S:
            return before.digests
        digests = await self._list()
        lists_left = LISTS_PER_CHANGE - 1 if before is None or is_announced else max(0, before.lists_left - 1)
        self._listed = _Listed(token, digests, now, lists_left)
        if before is not None and not is_announced and not before.lists_left and digests != before.digests:
            await self._announce()
        return digests

    async def _list(self) -> frozenset[Digest]:
        digests: set[Digest] = set()
        paths = 0
        async for path, _ in self._client.walk(BLOCKED):
            paths += 1
            if paths > PATHS_MAX:
                raise BucketError("the bucket lists too many blocked digests", general=False)
            if (digest := read_block_path(path)) is not None:
                digests.add(digest)
        return frozenset(digests)

    async def _announce(self) -> None:
        """
        Write another token. Changes that wait for the same write share it: some services limit the writes of one name.

        Raises:
            BucketError: It may not be written.
        """
        self._changes += 1
        own = self._changes
        async with self._lock:
            if self._announced >= own:
                return
            included = self._changes
            for attempt in range(1, TOKEN_ATTEMPTS_MAX + 1):
                try:
                    await self._client.put_bytes(BLOCKS_CHANGED, f"{token_hex(16)}\n".encode(), TOKEN_FIELDS)
                    break
                except BucketError:
                    if attempt == TOKEN_ATTEMPTS_MAX:
                        raise
                    await asyncio.sleep(TOKEN_RETRY_DELAY_S)
            self._announced = included

    async def _read_token(self) -> bytes | None:
        opened = await self._client.get(BLOCKS_CHANGED)
        return None if opened is None else await opened.stream.read_all(TOKEN_BYTES_MAX)


async def delete_and_check(client: BucketClient, path: str) -> None:
    """Delete an object, and check that it is gone: a 200 alone proves nothing."""
    await client.delete(path)
    left = await client.get(path)
    if left is not None:
        left.stream.close()
        raise BucketError("the bucket still has what it said it deleted", general=False)
