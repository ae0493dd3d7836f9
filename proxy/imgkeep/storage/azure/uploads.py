"""
Uploads to a container: in one request, or in blocks, by their size.

A 201 alone proves nothing: the service returns the MD5 of what it has taken, or else a HEAD has to return size and MD5.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.body import DraftPart, md5_of, read_whole
from imgkeep.storage.bucket.errors import NOT_TAKEN, BucketError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from imgkeep.storage.azure.connection import AzureConnection
    from imgkeep.storage.bucket.client import ObjectFields
    from imgkeep.storage.interfaces import Draft

WHOLE_BYTES_MAX: Final = 1_048_576
"""Maximum size that is sent from memory."""
BLOCKS_BYTES_MIN: Final = 16_777_216
"""Minimum size that is sent in blocks: a broken connection costs one of them."""
BLOCK_BYTES: Final = 8_388_608
"""Size of a block. The service takes 50,000 of up to 4000 MiB."""
BLOCKS_CONCURRENT_MAX: Final = 3


class Uploader:
    """
    The uploads to one container.

    Args:
        head: Returns the header fields of a blob; `None`: it is not there.
    """

    def __init__(self, connection: AzureConnection, head: Callable[[str], Awaitable[Mapping[str, str] | None]]) -> None:
        self._connection = connection
        self._head = head

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:
        """
        Upload a draft of any size.

        Raises:
            StorageError: The blob is not in the container, or not whole.
        """
        if draft.size <= WHOLE_BYTES_MAX:
            await self.put_bytes(path, await read_whole(draft), fields)
        elif draft.size < BLOCKS_BYTES_MIN:
            await self._put(path, DraftPart(draft, 0, draft.size), draft.size, await draft.check(md5_of), fields)
        else:
            await self.put_blocks(path, draft, fields, BLOCK_BYTES)

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:
        """Upload a few bytes. Raises as `put_draft`."""
        await self._put(path, data, len(data), md5_of(data), fields, {"If-None-Match": "*"} if only_if_absent else {})

    async def put_blocks(self, path: str, draft: Draft, fields: ObjectFields, block_bytes: int) -> None:
        """
        Upload a draft in blocks ("Put Block", "Put Block List"). Raises as `put_draft`.

        Blocks that are never committed are invisible, and the service removes them after a week. Their names say what
        is in them, so two nodes that upload one image at once do not disturb each other.
        """
        starts = range(0, draft.size, block_bytes)
        whole, digests = await draft.check(
            lambda body: (md5_of(body), [md5_of(body[start : start + block_bytes]) for start in starts])
        )
        names = [b64encode(f"{number:06d}-{digest.hex()}".encode()).decode() for number, digest in enumerate(digests)]
        slots = asyncio.Semaphore(BLOCKS_CONCURRENT_MAX)

        async def put_block(start: int, name: str, digest: bytes) -> None:
            end = min(start + block_bytes, draft.size)
            query = {"comp": "block", "blockid": name}
            async with slots:
                await self._send("put_block", path, DraftPart(draft, start, end), end - start, digest, query=query)

        try:
            async with asyncio.TaskGroup() as group:
                for block in zip(starts, names, digests, strict=True):
                    group.create_task(put_block(*block))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        # `Latest` also finds a block that another node has committed meanwhile.
        listed = "".join(f"<Latest>{name}</Latest>" for name in names)
        document = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {"x-ms-blob-content-md5": _encode(whole), **_fields(fields)}
        query = {"comp": "blocklist"}
        await self._send(
            "put_block_list", path, document, len(document), md5_of(document), query=query, headers=headers
        )
        # Azurite returns no checksum of a block.
        await self._require_stored(path, draft.size, whole)

    async def _put(  # noqa: PLR0913, PLR0917 - the parts of a request
        self,
        path: str,
        body: bytes | DraftPart,
        size: int,
        digest: bytes,
        fields: ObjectFields,
        condition: Mapping[str, str] | None = None,
    ) -> None:
        headers = {"x-ms-blob-type": "BlockBlob", **_fields(fields), **(condition or {})}
        if not await self._send("put_object", path, body, size, digest, headers=headers):
            await self._require_stored(path, size, digest)

    async def _send(  # noqa: PLR0913 - the parts of a request
        self,
        operation: str,
        path: str,
        body: bytes | DraftPart,
        size: int,
        digest: bytes,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send a body with its MD5; return whether the service returns that. Another one is a failure."""
        checksum = _encode(digest)
        answer, _ = await self._connection.call(
            operation,
            "PUT",
            self._connection.url(path),
            query=query,
            headers={"Content-Length": str(size), "Content-MD5": checksum, **(headers or {})},
            body=body,
        )
        returned = answer.get("Content-MD5", "")
        if returned not in {"", checksum}:
            raise self._connection.limits.name(BucketError(NOT_TAKEN, general=False))
        return bool(returned)

    async def _require_stored(self, path: str, size: int, digest: bytes) -> None:
        stored = await self._head(path)
        if stored is None or (stored.get("Content-Length"), stored.get("Content-MD5")) != (str(size), _encode(digest)):
            raise self._connection.limits.name(BucketError(NOT_TAKEN, general=False))


def _encode(digest: bytes) -> str:
    return b64encode(digest).decode()


def _fields(fields: ObjectFields) -> Mapping[str, str]:
    """Return the header fields that the service stores with a blob."""
    named = {
        "x-ms-blob-content-type": fields.content_type,
        "x-ms-blob-cache-control": fields.cache_control,
        "x-ms-blob-content-disposition": fields.content_disposition,
    }
    return {name: value for name, value in named.items() if value}
