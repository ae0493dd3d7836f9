"""
The client of the peer API: follows the fills of the other workers of this run, and sends them notices.

Rules:
- A peer is known by the name of its process. `_open_session` alone knows that it listens on a Unix socket of this
  machine, and `follow` alone that it shares files.
- Each request carries the secret of this run (`WorkerInfo.secret`), which no log holds.
- Only `web/api_relay.py` sends parts of a client's request to a peer, and it defines which. `follow` sends the name of
  a lease alone.
- A connection that has carried a body closes, and never carries another request: if its two ends disagreed about where
  that body ends, the peer would take the next request for a part of it.
- A peer that refuses a connection is dead or about to end: retry for a moment, then report that.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
from yarl import URL

from imgkeep.cluster.notice import Notice
from imgkeep.cluster.progress import SHARE_FILE, read_fill
from imgkeep.core.errors import Busy, OriginError, StorageError
from imgkeep.images.failure_history import RecentFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from multidict import CIMultiDict

    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.core.records import Digest, Key
    from imgkeep.images.peer_fill import FillFailure, RemoteFill

CONNECT_TIMEOUT_S: Final = 2
"""Timeout for a connection to a socket on this machine, whose worker may be busy."""
READ_TIMEOUT_S: Final = 360
"""
Timeout for the next bytes of a peer. A peer has its own limits; the longest is five minutes, for a client that waits
for the end of a job.
"""
NOTICE_TIMEOUT_S: Final = 5
"""Timeout for a peer to confirm a notice."""
COUNTERS_TIMEOUT_S: Final = 1
"""Timeout for a peer's counters or failures: a page shows those that arrived in time."""
UNREACHABLE_TIMEOUT_S: Final = 3
"""Timeout for a peer that refuses connections: the supervisor notices a death at once."""
RETRY_INTERVAL_S: Final = 0.02
"""Interval of attempts to reach such a peer."""

SECRET_FIELD: Final = "Imgkeep-Peer-Secret"  # noqa: S105 - the name of a header field
"""In requests: `WorkerInfo.secret`."""


@dataclass(frozen=True, slots=True)
class _Sessions:
    """The connections to one peer."""

    pooled: aiohttp.ClientSession
    """For requests without a body."""
    single_use: aiohttp.ClientSession
    """For requests with a body: each has a connection of its own."""

    async def aclose(self) -> None:
        await self.pooled.close()
        await self.single_use.close()


class WorkerPeers:
    """The other workers of this run."""

    def __init__(self, info: WorkerInfo) -> None:
        self.name = info.name
        self._slot = info.slot
        self._folder = info.shared_folder
        self._secret = info.secret
        self._sessions: dict[str, _Sessions] = {}

    async def aclose(self) -> None:
        for sessions in self._sessions.values():
            await sessions.aclose()

    @asynccontextmanager
    async def follow(self, holder: str, name: str) -> AsyncGenerator[RemoteFill | FillFailure | None]:
        """
        Follow a fill of a peer, by the name of its lease; `None`: it runs none, or its fill has ended.

        Raises:
            Busy: The peer holds the lease and cannot be reached.
            StorageError: The peer fails unexpectedly.
        """
        try:
            response = await self.request(holder, "GET", f"/fills/{name}?{SHARE_FILE}")
        except (aiohttp.ClientError, OSError):
            await self._wait_for_release(holder, name)
            yield None
            return
        try:
            if response.status == 204:
                yield None
                return
            if response.status != 200:
                raise StorageError("the worker that fetches the image does not report its progress")
            try:
                fill = await read_fill(response.content)
            except OriginError:  # the peer died before it had sent a message
                await self._wait_for_release(holder, name)
                fill = None
            yield fill
        finally:
            response.close()

    async def wait(self, holder: str, name: str) -> None:
        """
        Wait until a peer runs no fill of this name.

        Raises:
            Busy: The peer holds the lease and cannot be reached.
        """
        try:
            async with await self.request(holder, "GET", f"/fills/{name}/end"):
                return
        except (aiohttp.ClientError, OSError):
            await self._wait_for_release(holder, name)

    async def notify(
        self,
        *,
        blocked: Collection[Digest] = (),
        changed: Collection[Key] = (),
        copies: Mapping[str, int] = MappingProxyType({}),
        unblocked: Collection[Digest] = (),
    ) -> None:
        """
        Send a notice to all peers, and wait until each confirms it.

        Args:
            blocked: Digests that are blocked from now on.
            changed: Keys whose record has changed.
            copies: Local copies that this worker has added or used, by name, with their sizes.
            unblocked: Digests that are no longer blocked.

        Raises:
            StorageError: A live peer did not confirm the notice.
        """
        body = msgspec.msgpack.encode(Notice(list(blocked), list(changed), dict(copies), list(unblocked)))

        async def notify_one(name: str) -> None:
            try:
                async with asyncio.timeout(NOTICE_TIMEOUT_S):
                    async with await self.request(name, "POST", "/notices", body=body) as response:
                        if response.status != 204:
                            raise StorageError("another worker refused the notice of a change")
            except TimeoutError:
                raise StorageError("another worker did not confirm the notice of a change") from None
            except (aiohttp.ClientError, OSError):
                return  # it is dead, and the worker that replaces it reads everything anew

        results = await asyncio.gather(*map(notify_one, await self._list_peers()), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    def exclusively(self, _digest: Digest) -> AbstractAsyncContextManager[None]:
        """Do nothing: one worker alone removes and restores images (`relay_peers` of `bootstrap/cluster.py`)."""
        return nullcontext()

    async def counters(self) -> tuple[list[bytes], int, int]:
        """Return the counters of all peers, ended ones too; how many peers sent theirs, and how many did not."""
        sent = await self._request_all("/metrics")
        ended = await asyncio.to_thread(self._read_ended)
        for counters in ended:  # a worker that has ended since its answer is in both
            for name in msgspec.msgpack.decode(counters)[0]:
                sent.pop(name, None)
        answers = [counters for counters in sent.values() if counters is not None]
        return [*answers, *ended], len(answers), len(sent) - len(answers)

    async def failures(self) -> list[list[RecentFailure]]:
        """Return the recent failures of the peers that answer in time."""
        sent = await self._request_all("/failures")
        return [msgspec.msgpack.decode(each, type=list[RecentFailure]) for each in sent.values() if each is not None]

    def save_counters(self, counters: bytes, merge: Callable[[Sequence[bytes]], bytes]) -> None:
        """Save the counters of this worker, which ends, for its peers; merged with its predecessors'. Blocks."""
        with suppress(OSError):
            self._folder.ended.mkdir(exist_ok=True)
            path = self._folder.ended / str(self._slot)
            new = self._folder.path / f"ended.{self.name}"
            before = [path.read_bytes()] if path.exists() else []
            new.write_bytes(merge([counters, *before]))
            new.replace(path)

    async def request(
        self,
        peer: str,
        method: str,
        target: str,
        fields: CIMultiDict[str] | None = None,
        body: AsyncIterable[bytes] | bytes | None = None,
    ) -> aiohttp.ClientResponse:
        """
        Send a request to a peer.

        Args:
            peer: Its name.
            method: The method.
            target: Path and query, percent-encoded ASCII.
            fields: Header fields besides the secret.
            body: Sent in chunks where it comes in pieces.

        Raises:
            aiohttp.ClientError, OSError: The peer did not answer.
        """
        path, _, query = target.partition("?")
        # A `#` goes along as it came: it begins no fragment here.
        url = URL.build(scheme="http", host="peer", path=path, query_string=query, encoded=True)
        give_up_at = asyncio.get_running_loop().time() + UNREACHABLE_TIMEOUT_S
        while True:
            sessions = self._sessions_to(peer)
            session = sessions.pooled if body is None else sessions.single_use
            try:
                return await session.request(method, url, headers=fields, data=body, allow_redirects=False)
            except aiohttp.ClientConnectorError as error:
                # Not dead: more workers connect than its queue holds (man 7 unix).
                if error.errno != errno.EAGAIN or asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(RETRY_INTERVAL_S)

    def find_leader(self) -> str | None:
        """Return the name of the last leader."""
        try:
            return str(self._folder.leader.readlink())
        except OSError:
            return None

    async def _wait_for_release(self, holder: str, name: str) -> None:
        """
        Wait until a peer that cannot be reached has lost its lease.

        Raises:
            Busy: It still holds the lease.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + UNREACHABLE_TIMEOUT_S
        lease = self._folder.leases / name
        while loop.time() < give_up_at:
            await asyncio.sleep(RETRY_INTERVAL_S)
            with suppress(OSError):
                if str(lease.readlink()) == holder:
                    continue
            return
        raise Busy("the worker that fetches this image cannot be reached", retry_after_s=1)

    async def _request_all(self, path: str) -> dict[str, bytes | None]:
        """Send the same request to all peers; return the answers by name, `None`: there was none in time."""

        async def request_one(name: str) -> bytes | None:
            try:
                async with asyncio.timeout(COUNTERS_TIMEOUT_S):
                    async with await self.request(name, "GET", path) as response:
                        return await response.read() if response.status == 200 else None
            except (TimeoutError, aiohttp.ClientError, OSError):
                return None

        names = await self._list_peers()
        return dict(zip(names, await asyncio.gather(*map(request_one, names)), strict=True))

    async def _list_peers(self) -> list[str]:
        """Return the names of all peers, and close the connections to those that are gone."""
        names = self._folder.sockets().keys() - {self.name}
        for name in self._sessions.keys() - names:
            await self._sessions.pop(name).aclose()
        return list(names)

    def _read_ended(self) -> list[bytes]:
        with suppress(OSError):
            return [path.read_bytes() for path in self._folder.ended.iterdir()]
        return []

    def _sessions_to(self, peer: str) -> _Sessions:
        sessions = self._sessions.get(peer)
        if sessions is None:
            sessions = _Sessions(self._open_session(peer), self._open_session(peer, force_close=True))
            self._sessions[peer] = sessions
        return sessions

    def _open_session(self, peer: str, *, force_close: bool = False) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._folder.socket(peer)), limit=0, force_close=force_close),
            headers={SECRET_FIELD: self._secret},
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
