"""
Derived pictures: finds a picture, or makes it from the original.

Rules:
- The order of a lookup is fixed: the disk cache with its memory, the memory of failures, the store, a derive process.
- One call per name: requests for a picture that is being made wait for it, here and in other workers and nodes.
- The original is read in full and written nowhere. A picture may vanish at any time; it is made again.
- An empty picture is a marker (`core/derived/names.py`): the next name of the request takes its place.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep.core.derived.names import name_of
from imgkeep.core.derived.negotiation import Abilities, choose_formats
from imgkeep.core.errors import Busy, DeriveFailed, NotSupported, Removed
from imgkeep.core.layout import REMOVED, read_object_name
from imgkeep.core.records import Format
from imgkeep.derived.derive_call import DeriveCall
from imgkeep.derived.failed_pictures import FailedPictures
from imgkeep.derived.messages import Derived, DeriveJob, NotSmaller, Refused
from imgkeep.derived.original_file import open_original
from imgkeep.derived.written_pictures import is_as_stated
from imgkeep.images.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from imgkeep.clock import Sleep
    from imgkeep.config.schema import Derive
    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.derived.negotiation import Accepted
    from imgkeep.core.derived.options import PictureOptions
    from imgkeep.core.records import Client, Digest, Record
    from imgkeep.derived.picture_cache import FoundPicture, PictureCache
    from imgkeep.derived.picture_sharing import PictureSharing
    from imgkeep.derived.picture_store import PictureStore
    from imgkeep.derived.processes import DeriveProcesses
    from imgkeep.images.request_context import RequestContext
    from imgkeep.storage.interfaces import Body, Spool, Store

REFUSAL_DELAY_S: Final = 0.5
"""Mean time for which a request waits for a place in the queue, before it is refused."""
LEADERS_MAX: Final = 3
"""Maximum number of calls of other clients that a request follows until the queue refuses them."""
USUAL_FORMATS: Final = frozenset({Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF, Format.GIF})
"""Formats that libvips writes until the first derive process says which ones its own does."""


@dataclass(frozen=True, slots=True)
class StoredOriginal:
    """
    The original of pictures.

    Attributes:
        object_name: `<digest>.<ext>`.
        size: The size in its record, if there is one.
    """

    object_name: str
    digest: Digest
    format: Format
    size: int | None = None

    @classmethod
    def of(cls, record: Record) -> StoredOriginal:
        """Return the original of a record."""
        return cls(record.object_name, record.digest, record.format, record.size)

    @classmethod
    def named(cls, object_name: str) -> StoredOriginal | None:
        """Return the original of an object's name; `None`: it is no such name."""
        read = read_object_name(object_name)
        return None if read is None else cls(object_name, *read)


@dataclass(frozen=True, slots=True)
class Picture:
    """A derived picture that is open. The caller closes `body`. `is_new`: it was made for this request."""

    name: PictureName
    body: Body
    etag: str
    is_new: bool


class DerivedPictures:
    """
    The derived pictures of one process, which finds or makes them.

    Args:
        processes: The derive processes.
        cache: The pictures on the local disk.
        picture_store: The pictures in the store, where they are kept there.
        sharing: Has each picture made once by all workers and nodes.
        originals: The store of the originals.
        spool: Takes originals that are in no local file.
        blocked: The digests of removed images.
        settings: Limits of a picture, and whether SVG images are drawn.
        timer: Gives monotonic seconds.
        sleep: Waits before a refusal.
        draw: Returns a random number below 1, so that refused requests do not come back together.
    """

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        processes: DeriveProcesses,
        cache: PictureCache,
        picture_store: PictureStore,
        sharing: PictureSharing,
        originals: Store,
        spool: Spool,
        settings: Derive,
        blocked: Container[Digest],
        timer: Callable[[], float],
        sleep: Sleep,
        draw: Callable[[], float],
    ) -> None:
        self._processes = processes
        self._cache = cache
        self._picture_store = picture_store
        self._sharing = sharing
        self._originals = originals
        self._spool = spool
        self._settings = settings
        self._blocked = blocked
        self._sleep = sleep
        self._draw = draw
        self._abilities = Abilities(USUAL_FORMATS, draws_svg=settings.svg)
        self._knows_writable = False
        self.failed = FailedPictures(timer)
        self.running: SingleFlight[DeriveCall] = SingleFlight()

    def find_names(
        self, original: StoredOriginal, options: PictureOptions, accepted: Accepted
    ) -> tuple[PictureName, ...]:
        """
        Return the names of the pictures that answer a request, best first; none: the original itself does.

        Raises:
            NotSupported: The request names a format that this installation does not write.
        """
        chosen = choose_formats(options, original.format, accepted, self._find_abilities())
        if chosen[0].format is Format.SVG:
            return ()
        digest = original.digest
        return tuple(name_of(digest, options, each.format, negotiated=each.negotiated) for each in chosen)

    async def open(
        self, original: StoredOriginal, names: tuple[PictureName, ...], request_context: RequestContext
    ) -> Picture | None:
        """
        Open the first of some pictures that is no marker, and make it if need be.

        `None`: the bytes of the original are not in the store.

        Raises:
            DeriveFailed, NotSupported: It cannot be made.
            Removed: The original was removed.
            Busy, StorageError: It cannot be made now.
        """
        for name in names:
            picture = await self._open_one(original, name, request_context)
            if picture is None or picture.body.size:
                return picture
            await picture.body.aclose()  # a marker
        raise DeriveFailed("no picture was made of the image: report this as an error of imgkeep")

    async def require_usable(self) -> None:
        """Raise `NotSupported` where this installation makes no pictures."""
        await self._processes.require_usable()

    async def aclose(self) -> None:
        await self.running.aclose()

    async def _open_one(
        self, original: StoredOriginal, name: PictureName, request_context: RequestContext
    ) -> Picture | None:
        self._require_not_removed(name)
        client = request_context.client
        if not self._cache.may_have(name):
            await self._require_room(name, request_context)  # a flood of other sizes costs no look at the disk
        found = await self._cache.find(name)
        if found is not None:
            self._picture_store.put_later(name)
            return Picture(name, found.body, found.etag, is_new=False)
        for _ in range(LEADERS_MAX):
            self.failed.require_none(name)
            await self._require_room(name, request_context)
            call, starts = self.running.join(name, lambda: DeriveCall(partial(self._make_once, original, name, client)))
            try:
                made = await call.follow(request_context)
            except Busy:
                if starts:
                    raise
                continue  # the queue has refused the client that leads, and may have a place for this one
            if made is None:
                return None
            self._picture_store.put_later(name)
            return Picture(name, *made, is_new=starts and call.is_made)
        raise Busy("too many pictures wait to be made: retry the request")

    async def _require_room(self, name: PictureName, request_context: RequestContext) -> None:
        """
        Raise `Busy` for a picture whose job would find no place, before anything is opened for it.

        Not at once: a client that answers each refusal with the next request would keep the event loop from others.
        """
        client = request_context.client
        if name in self.running or self._settings.store:
            return
        if not self._processes.has_room(client):
            await request_context.wait(self._sleep(REFUSAL_DELAY_S * (0.5 + self._draw())))
        self._processes.require_room(client)

    async def _make_once(
        self, original: StoredOriginal, name: PictureName, client: Client, call: DeriveCall
    ) -> FoundPicture | None:
        """Find a picture, or make it once for all workers and nodes; `None`: its original is gone."""

        async def make() -> FoundPicture:
            call.is_made = True
            return await self._make(original, name, client)

        try:
            return await self._sharing.make_once(name, lambda: self._look_up(name), make)
        except _OriginalGoneError:
            return None

    async def _look_up(self, name: PictureName) -> FoundPicture | None:
        """Look a picture up in the disk cache, then in the store."""
        found = await self._cache.find(name)
        if found is not None or not self._settings.store:
            return found
        draft = await self._cache.begin()
        try:
            return await self._cache.put(draft, name) if await self._picture_store.fetch_into(name, draft) else None
        finally:
            await draft.aclose()

    async def _make(self, original: StoredOriginal, name: PictureName, client: Client) -> FoundPicture:
        """Make a picture, and put it into the disk cache."""
        self._processes.require_room(client)
        body = await self._originals.fetch(original.object_name, original.size)
        if body is None:
            raise _OriginalGoneError
        async with open_original(body, self._spool) as source:
            size = await body.wait_for_size()
            draft = await self._cache.begin()
            try:
                job = self._make_job(original, name, size)
                if not await self._run(job, name, source, draft.descriptor, client):
                    draft.clear()  # whatever the process has written before it found out
                self._require_not_removed(name)
                return await self._cache.put(draft, name)
            finally:
                await draft.aclose()

    def _make_job(self, original: StoredOriginal, name: PictureName, size: int) -> DeriveJob:
        settings = self._settings
        is_bounded = name.negotiated or name.format is original.format
        return DeriveJob(
            stem=name.stem,
            format=name.format.name,
            original_format=original.format.name,
            pixels_max=settings.pixels_max,
            frames_max=settings.frames_max,
            side_max=settings.side_max,
            rasterise_svg=settings.svg,
            smaller_than=size if is_bounded else 0,
            timeout_s=settings.timeout_s,
        )

    async def _run(self, job: DeriveJob, name: PictureName, source: int, output: int, client: Client) -> bool:
        """
        Have a process write a picture; `False`: it would not be smaller than the original.

        Raises:
            DeriveFailed, NotSupported: It cannot be made; the failure is remembered.
            Busy: As `DeriveProcesses.run`.
        """
        try:
            answer = await self._processes.run(job, source, output, client)
        except DeriveFailed as error:
            self.failed.note(name, error, crashed=True)
            raise
        match answer:
            # In a thread: the bytes may be the original's own, which take 0.2 s if they are made to.
            case Derived() if await asyncio.to_thread(
                is_as_stated, answer, name.format, self._settings.side_max, output
            ):
                return True
            case NotSmaller() if name.negotiated:
                return False
            case Refused(reason=reason, detail=detail):
                refused = NotSupported(detail) if reason == "unsupported" else DeriveFailed(detail)
            case _:  # an empty picture would be a marker
                refused = DeriveFailed(
                    "the answer of the derive process does not fit its picture: ask for the original"
                )
        self.failed.note(name, refused, crashed=False)
        raise refused

    def _find_abilities(self) -> Abilities:
        ready = self._processes.ready
        if ready is not None and not self._knows_writable:
            self._knows_writable = True
            self._abilities = replace(self._abilities, writable=frozenset(Format[name] for name in ready.writes))
        return self._abilities

    def _require_not_removed(self, name: PictureName) -> None:
        if name.digest in self._blocked:
            raise Removed(REMOVED)


class _OriginalGoneError(Exception):
    """The bytes of the original are not in the store."""
