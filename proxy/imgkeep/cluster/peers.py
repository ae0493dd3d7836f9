"""
The other workers that share our port, each behind a socket in a folder that only they can open.

Rules:
- Each request proves itself by the secret of this run (`WorkerInfo.secret`), which stands in no log.
- No byte of a client's goes into the head of a request but through `relay.py`, which says what.
- A connection that has carried a body is closed, and never carries another request: were its two ends ever of two minds
  about where that body ends, the next request would be taken for a part of it.
- Who cannot be connected to is dead or on its way: it is asked again for a moment, and then that is an answer.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
from yarl import URL

from imgkeep.cluster.progress import read_fill
from imgkeep.core.errors import Busy, OriginError, StorageError
from imgkeep.core.records import WorkerInfo
from imgkeep.images.recent_failures import RecentFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Mapping, Sequence

    from multidict import CIMultiDict

    from imgkeep.core.records import Digest, Key
    from imgkeep.images.peer_fill import FillFailure, RemoteFill

ENDED: Final = "left"
"""The folder of what workers that have ended had counted, a file a slot."""

CONNECT_TIMEOUT_S: Final = 2
"""For a socket on this machine, whose worker may be busy."""
SILENT_MAX_S: Final = 360
"""A sibling has limits of its own for all that it does; the longest is for a job that is waited for, five minutes."""
TELL_TIMEOUT_S: Final = 5
COUNTERS_TIMEOUT_S: Final = 1
UNREACHABLE_TIMEOUT_S: Final = 3
"""With one that cannot be reached: the supervisor notices a death at once."""
RETRY_INTERVAL_S: Final = 0.02

PEER: Final = "Imgkeep-Peer"
"""In requests: `WorkerInfo.secret`."""
OUTCOME: Final = "Imgkeep-Outcome"
"""In answers: what the record of the request is going to say."""


class Notice(msgspec.Struct):
    """What a worker tells its peers."""

    refused: list[str] = []
    changed: list[str] = []
    copies: dict[str, int] = {}
    restored: list[str] = []


@dataclass(frozen=True, slots=True)
class _Lines:
    """The connections to one worker."""

    kept: aiohttp.ClientSession
    """For requests without a body."""
    single: aiohttp.ClientSession
    """For those with one: each has a connection of its own."""

    async def aclose(self) -> None:
        await self.kept.close()
        await self.single.close()


class Peers:
    """Implements `images.peer_fill.FillPeers`."""

    def __init__(self, place: WorkerInfo) -> None:
        self.name = place.name
        self._slot = place.slot
        self._folder = Path(place.folder)
        self._secret = place.secret
        self._lines: dict[str, _Lines] = {}

    async def aclose(self) -> None:
        for lines in self._lines.values():
            await lines.aclose()

    def socket_path(self, name: str) -> Path:
        """Return where a worker listens for its peers."""
        return self._folder / f"{name}.sock"

    @asynccontextmanager
    async def follow(self, holder: str, name: str) -> AsyncGenerator[RemoteFill | FillFailure | None]:
        """
        Follow a fill in another worker, by the name of its lease; `None`: there is none to follow, or not any more.

        Raises:
            Busy: It cannot be asked.
            StorageError: It fails unexpectedly.
        """
        try:
            answer = await self.ask(holder, "GET", f"/fills/{name}")
        except (aiohttp.ClientError, OSError):
            await self._see_freed(holder, name)
            yield None
            return
        try:
            if answer.status == 204:
                yield None
                return
            if answer.status != 200:
                raise StorageError("another worker cannot tell of the image that it fetches")
            try:
                feed = await read_fill(answer.content)
            except OriginError:  # it died before it could tell
                await self._see_freed(holder, name)
                feed = None
            yield feed
        finally:
            answer.close()

    async def wait(self, holder: str, key: str) -> None:
        try:
            async with await self.ask(holder, "GET", f"/fills/{key}/end"):
                return
        except (aiohttp.ClientError, OSError):
            await self._see_freed(holder, key)

    async def tell(
        self,
        *,
        refused: Collection[Digest] = (),
        changed: Collection[Key] = (),
        copies: Mapping[str, int] = MappingProxyType({}),
        restored: Collection[Digest] = (),
    ) -> None:
        body = msgspec.msgpack.encode(Notice(list(refused), list(changed), dict(copies), list(restored)))

        async def tell(name: str) -> None:
            try:
                async with asyncio.timeout(TELL_TIMEOUT_S):
                    async with await self.ask(name, "POST", "/notices", body=body) as answer:
                        if answer.status != 204:
                            raise StorageError("another worker could not be told what has changed")
            except TimeoutError:
                raise StorageError("another worker does not say that it knows what has changed") from None
            except (aiohttp.ClientError, OSError):
                return  # it is dead, and what comes in its place looks for itself

        told = await asyncio.gather(*map(tell, await self._look_around()), return_exceptions=True)
        for error in told:
            if isinstance(error, BaseException):
                raise error

    async def counters(self) -> tuple[list[bytes], int, int]:
        """Return what all others have counted, those that have ended too; how many told it, and how many did not."""
        told = await self._ask_all("/metrics")
        left = await asyncio.to_thread(self._read_left)
        for counted in left:  # whoever told us and has ended since stands in both
            for name in msgspec.msgpack.decode(counted)[0]:
                told.pop(name, None)
        answers = [counted for counted in told.values() if counted is not None]
        return [*answers, *left], len(answers), len(told) - len(answers)

    async def failures(self) -> list[list[RecentFailure]]:
        """Return what failed lately in the other workers, as far as they answer in time."""
        told = await self._ask_all("/failures")
        return [msgspec.msgpack.decode(each, type=list[RecentFailure]) for each in told.values() if each is not None]

    async def _ask_all(self, path: str) -> dict[str, bytes | None]:
        """Ask all others for the same, and return the answers by name; `None`: there was none in time."""

        async def ask(name: str) -> bytes | None:
            try:
                async with asyncio.timeout(COUNTERS_TIMEOUT_S):
                    async with await self.ask(name, "GET", path) as answer:
                        return await answer.read() if answer.status == 200 else None
            except (TimeoutError, aiohttp.ClientError, OSError):
                return None

        names = await self._look_around()
        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))

    def save_counters(self, counted: bytes, merge: Callable[[Sequence[bytes]], bytes]) -> None:
        """Leave what we have counted for those who stay, with what our predecessors did. Blocks."""
        folder = self._folder / ENDED
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            place, new = folder / str(self._slot), self._folder / f"{ENDED}.{self.name}"
            before = [place.read_bytes()] if place.exists() else []
            new.write_bytes(merge([counted, *before]))
            new.replace(place)

    async def ask(
        self,
        holder: str,
        method: str,
        target: str,
        fields: CIMultiDict[str] | None = None,
        body: AsyncIterable[bytes] | bytes | None = None,
    ) -> aiohttp.ClientResponse:
        """
        Ask another worker. `target` is path and query, percent-encoded ASCII; what comes in pieces is sent in chunks.

        Raises:
            aiohttp.ClientError, OSError: It said nothing.
        """
        path, _, query = target.partition("?")
        # What looks like a fragment goes along as it came.
        url = URL.build(scheme="http", host="peer", path=path, query_string=query, encoded=True)
        give_up_at = asyncio.get_running_loop().time() + UNREACHABLE_TIMEOUT_S
        while True:
            lines = self._lines_to(holder)
            session = lines.kept if body is None else lines.single
            try:
                return await session.request(method, url, headers=fields, data=body, allow_redirects=False)
            except aiohttp.ClientConnectorError as error:
                # Not dead: more of us are connecting than it has room for (man 7 unix).
                if error.errno != errno.EAGAIN or asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(RETRY_INTERVAL_S)

    def find_leader(self) -> str | None:
        """Return the name of the worker whose turn it is."""
        try:
            return str((self._folder / WorkerInfo.LEADER).readlink())
        except OSError:
            return None

    async def _see_freed(self, holder: str, key: str) -> None:
        """
        Wait until a worker that cannot be reached has lost its lease.

        Raises:
            Busy: It has not.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + UNREACHABLE_TIMEOUT_S
        lease = self._folder / WorkerInfo.LEASES / key
        while loop.time() < give_up_at:
            await asyncio.sleep(RETRY_INTERVAL_S)
            with suppress(OSError):
                if str(lease.readlink()) == holder:
                    continue
            return
        raise Busy("the worker that fetches this image cannot be reached", retry_after_s=1)

    async def _look_around(self) -> list[str]:
        """Return the names of all others, and forget those who are gone."""
        names = {path.name.removesuffix(".sock") for path in self._folder.glob("*.sock")} - {self.name}
        for name in self._lines.keys() - names:
            await self._lines.pop(name).aclose()
        return list(names)

    def _read_left(self) -> list[bytes]:
        with suppress(OSError):
            return [path.read_bytes() for path in (self._folder / ENDED).iterdir()]
        return []

    def _lines_to(self, name: str) -> _Lines:
        lines = self._lines.get(name)
        if lines is None:
            lines = self._lines[name] = _Lines(self._session(name), self._session(name, force_close=True))
        return lines

    def _session(self, name: str, *, force_close: bool = False) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_path(name)), limit=0, force_close=force_close),
            headers={PEER: self._secret},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENT_MAX_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
