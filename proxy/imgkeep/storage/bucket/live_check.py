"""
The live check of a bucket: every right that it must give is tried in turn, with an image under a usual path.

A step that fails does not stop the others, so one run shows everything that has to be done. No message holds the URL
of a presigned link.
"""

from __future__ import annotations

import asyncio
import zlib
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from imgkeep.core.derived.names import DERIVED, PictureName
from imgkeep.core.errors import Busy, StorageError
from imgkeep.core.layout import OBJECTS, object_path
from imgkeep.core.records import Digest, Format
from imgkeep.storage.bucket.errors import BucketError, NotPublic, PublicUnreachable
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.storage.bucket.client import Check
    from imgkeep.storage.bucket.store import BucketStore
    from imgkeep.storage.interfaces import Draft

PRESIGN_TTL_S: Final = 60
RANGE: Final = (8, 16)
IMAGE_BYTES_MAX: Final = 1024
"""Maximum size of the image of a check."""
PRESIGN_REMEDY: Final = "set the clock of this machine, and see that nothing before the bucket changes requests"
DELETE_TIMEOUT_S: Final = 2
"""Timeout for the removal of a probe's image: the end of a process may wait for it."""


@dataclass(frozen=True, slots=True)
class Step:
    """
    The result of one step.

    Attributes:
        error: What failed.
        remedy: What helps, where that is known.
        note: What the operator should know though nothing failed.
    """

    name: str
    error: str | None = None
    remedy: str | None = None
    note: str | None = None


async def check_bucket(
    store: BucketStore,
    *,
    public_url: Callable[[str], str] | None,
    public_path: Callable[[str], str] | None = None,
) -> AsyncGenerator[Step]:
    """
    Try everything that the bucket must do.

    Args:
        store: The store in the bucket.
        public_url: Returns the permanent URL of an object; `None`: it has none.
        public_path: Returns the public URL of the path of a derived picture; `None`: no client is sent there.
    """
    probe = _Probe(store, _image())
    try:
        put = await _try("put", probe.put)
        yield put
        for name, work in probe.reads():
            yield await _try(name, work, put)
        yield await _try("list", probe.list)
        for name, work in probe.live_checks():
            yield await _try(name, work)
        if store.client.features.presign:
            yield await _try("presign", probe.get_presigned, put, remedy=PRESIGN_REMEDY)
        if public_url is not None:
            url = public_url(probe.name)
            yield await _try("public", lambda: probe.get_from(url), put, remedy=_public_remedy(store, OBJECTS))
        if public_path is not None:
            remedy = _public_remedy(store, DERIVED)
            yield await _try("public pictures", lambda: try_public_picture(store, public_path), put, remedy=remedy)
        # Also after a failed put: the bucket may have taken the image, and a missing name can be deleted.
        yield await _try("delete", probe.delete)
    finally:
        if not probe.delete_tried:
            with suppress(StorageError):
                await probe.delete()


async def try_public(store: BucketStore, public_url: Callable[[str], str]) -> None:
    """
    Put an image, get it by its public URL as a client does, and delete it.

    Raises:
        NotPublic: The public URL answers with something else.
        PublicUnreachable: It cannot be reached from here.
        StorageError: The bucket fails.
    """
    probe = _Probe(store, _image())
    await _try_public(probe, lambda: public_url(probe.name))


async def try_public_picture(store: BucketStore, public_path: Callable[[str], str]) -> None:
    """Put a derived picture, get it by its public URL as a client does, and delete it. Raises as `try_public`."""
    probe = _PictureProbe(store, _image())
    await _try_public(probe, lambda: public_path(probe.path))


async def _try_public(probe: _Probe, url: Callable[[], str]) -> None:
    try:
        await probe.put()
        await probe.get_from(url())
    finally:
        with suppress(StorageError, Busy, TimeoutError):
            async with asyncio.timeout(DELETE_TIMEOUT_S):
                await probe.delete()


def _public_remedy(store: BucketStore, folder: str) -> str:
    features = store.client.features
    mode = "presign" if features.presign else "serve"
    first = f"make {folder}/ public" if features.public_prefix else f"set delivery.base_url to a CDN for {folder}/"
    return f"{first}: docs/{store.name}.md, or use delivery.mode {mode}"


async def _try(
    name: str, work: Callable[[], Awaitable[str | None]], needs: Step | None = None, *, remedy: str | None = None
) -> Step:
    if needs is not None and needs.error is not None:
        return Step(name, f"not tried, because {needs.name} failed")
    try:
        note = await work()
    except BucketError as fault:
        return Step(name, fault.in_full, fault.remedy or remedy)
    except StorageError as fault:
        return Step(name, fault.in_full, remedy)
    return Step(name, note=note)


class _Probe:
    """The steps, with one image. Each raises a `StorageError` if it fails."""

    folder = OBJECTS

    def __init__(self, store: BucketStore, image: bytes) -> None:
        self.name = f"{sha256(image).hexdigest()}.png"
        self.delete_tried = False
        self._store = store
        self._client = store.client
        self._image = image
        self.path = object_path(self.name)

    def reads(self) -> Sequence[Check]:
        found: list[Check] = [("head", self.head), ("get", self.get)]
        return [*found, ("range", self.get_range)] if self._client.features.ranges else found

    def live_checks(self) -> Sequence[Check]:
        return self._client.live_checks(self.path, self._image)

    async def put(self) -> None:
        draft = await MemorySpool(IMAGE_BYTES_MAX).begin(len(self._image))
        try:
            await draft.write(self._image)
            await self._put(draft)
        finally:
            await draft.aclose()

    async def _put(self, draft: Draft) -> None:
        await self._store.put_object(draft, self.name)

    async def head(self) -> None:
        if await self._store.size_of(self.name) != len(self._image):
            raise BucketError("the bucket does not have what it said it took")

    async def get(self) -> None:
        if await self._store.hash_object(self.path) != self.name.partition(".")[0]:
            raise BucketError("the bucket returns other bytes than were put")

    async def get_range(self) -> None:
        start, end = RANGE
        opened = await self._client.get(self.path, start=start, end=end)
        part = b"" if opened is None else await opened.stream.read_all(len(self._image))
        if part != self._image[start:end]:
            raise BucketError("the bucket does not return the requested part of an object")

    async def list(self) -> None:
        await self._client.has_any(self.path)

    async def get_presigned(self) -> None:
        url, _ = await self._store.presign(self.name, ttl_s=PRESIGN_TTL_S, head=False)
        await self.get_from(url)

    async def get_from(self, url: str) -> None:
        """
        Get the image as a client does that has its URL alone.

        Raises:
            NotPublic, PublicUnreachable: It does not come.
        """
        timeout = aiohttp.ClientTimeout(total=self._client.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(URL(url, encoded=True)) as response,
            ):
                status = response.status
                received = bytearray()
                while len(received) <= len(self._image) and (piece := await response.content.read(IMAGE_BYTES_MAX)):
                    received += piece
        except TimeoutError:
            raise PublicUnreachable("a plain GET got no answer within store.timeout_s") from None
        except (aiohttp.ClientError, ValueError, OSError):
            raise PublicUnreachable("a plain GET reached no server, or broke off") from None
        if status != 200:
            raise NotPublic(f"a plain GET got status {status}", _public_remedy(self._store, self.folder))
        if received != self._image:
            raise NotPublic("a plain GET returned other bytes than were put", _public_remedy(self._store, self.folder))

    async def delete(self) -> None:
        self.delete_tried = True
        await self._client.delete(self.path)


class _PictureProbe(_Probe):
    """The same steps with the image as a derived picture."""

    folder = DERIVED

    def __init__(self, store: BucketStore, image: bytes) -> None:
        super().__init__(store, image)
        self._picture = PictureName(Digest(sha256(image).hexdigest()), "full", Format.PNG)
        self.path = self._picture.path

    async def _put(self, draft: Draft) -> None:
        await self._store.pictures.put(draft, self._picture)


def _image() -> bytes:
    """Return a PNG of one grey pixel whose bytes are new in any bucket (PNG third edition, 11.2 and 11.3.3.3)."""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", (1).to_bytes(4) + (1).to_bytes(4) + bytes((8, 0, 0, 0, 0))),
            _chunk(b"tEXt", b"Comment\0imgkeep tests whether it can use this bucket: " + token_hex(16).encode()),
            _chunk(b"IDAT", zlib.compress(b"\0\x80")),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
