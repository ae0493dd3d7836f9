"""
The other workers that share our port, each behind a socket in a folder that only they can open.

Rules:
- Who cannot be connected to is dead or on its way: it is asked again for a moment, and then that is an answer.
- An image that another worker fetches is read here from the file that grows there; one without a file, and any other
  answer, is passed on as it comes, at the client's own speed. An end that is cut off stays one.
- What a sibling answers is counted here, where the client is, and not there.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from proxy.core.errors import Busy, OriginError, StorageError
from proxy.core.model import Place
from proxy.web.exchange import Answer, Part, piece_size
from proxy.web.growth import GROWS_IN, READS_ALONG, read_growth, read_steps
from proxy.web.site import NOTES, SITE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from proxy.core.model import Digest, Key
    from proxy.web.exchange import Ask
    from proxy.web.site import Notes

LEFT: Final = "left"
"""The folder of what workers that have ended had counted, a file a slot."""

CONNECT_TIMEOUT_S: Final = 2
"""For a socket on this machine, whose worker may be busy."""
SILENT_MAX_S: Final = 360
"""A sibling has limits of its own for all that it does; the longest is for a job that is waited for, five minutes."""
TELL_TIMEOUT_S: Final = 5
COUNTERS_TIMEOUT_S: Final = 1
PATIENCE_S: Final = 3
"""With one that cannot be reached: the supervisor notices a death at once."""
LOOK_EVERY_S: Final = 0.02
TRIES_MAX: Final = 50
"""So often a request is sent where the image was a moment ago."""

CONDITIONS: Final = ("If-None-Match", "If-Range", "Range", "Via", "CDN-Loop")
"""Of a request for an image, all that its answer depends on besides the target."""
OUTCOME: Final = "Imgkeep-Outcome"
"""In answers to siblings: what the record of the request is going to say."""
HOP_BY_HOP: Final = frozenset({"connection", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
NOT_PASSED_ON: Final = HOP_BY_HOP | {"date", "server", OUTCOME.lower(), GROWS_IN.lower()}

_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))


class Notice(msgspec.Struct):
    """What a worker tells its siblings."""

    refused: list[str] = []
    changed: list[str] = []
    copies: dict[str, int] = {}
    restored: list[str] = []


class Siblings:
    """Implements `ports.Siblings`, and passes requests on."""

    def __init__(self, place: Place) -> None:
        self.name = place.name
        self._slot = place.slot
        self._folder = Path(place.folder)
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def socket_of(self, name: str) -> Path:
        """Return where a worker listens for its siblings."""
        return self._folder / f"{name}.sock"

    async def follow(self, ask: Ask, holder: str, key: Key) -> Answer | None:
        """
        Answer with the image of `key` that another worker has or is fetching; `None`: look again, it has none.

        Raises:
            Busy: It cannot be asked.
        """
        target = ask.target
        if not ask.takes_chunks or not target.startswith("/") or not target.isascii() or "#" in target:
            # Such a client cannot be told that a body of unknown size was cut; such a target would not arrive as it is.
            await self.wait(holder, key)
            return None
        conditions = [(name, value) for name in CONDITIONS for value in ask.fields.getall(name, [])]
        fields = CIMultiDict((name, value) for name, value in conditions if _can_be_sent(value))
        fields.add(READS_ALONG, "1")
        method = "HEAD" if ask.head else "GET"
        try:
            answer = await self._ask(holder, method, URL(f"http://sibling{target}", encoded=True), fields)
        except (aiohttp.ClientError, OSError):
            await self._see_freed(holder, key)
            return None
        async with AsyncExitStack() as stack:
            stack.callback(answer.close)
            if answer.status == web.HTTPMisdirectedRequest.status_code:
                return None
            headers = dict(_take_notes(answer, ask.notes))
            if ask.head or answer.status == HTTPStatus.NOT_MODIFIED:
                return Answer(answer.status, headers)
            growth = answer.headers.get(GROWS_IN)
            if growth is None:
                end, body = answer.content_length, Relayed(answer)
                part = Part(body, 0, end, await body.read(0, piece_size(0, end)))
            else:
                end, path = read_growth(growth)
                mirror = await ask.site.keeper.mirror(path, read_steps(answer), answer.close)
                if mirror is None:  # it is being given its name
                    await self.wait(holder, key)
                    return None
                stack.push_async_callback(mirror.aclose)
                part = Part(mirror, 0, end, await mirror.read(0, piece_size(0, end)), mirror)
                if end is not None:
                    headers["Content-Length"] = str(end)
            stack.pop_all()
            return Answer(answer.status, headers, part)

    async def wait(self, holder: str, key: str) -> None:
        try:
            async with self._session(holder).get(f"http://sibling/fills/{key}"):
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
                    async with self._session(name).post("http://sibling/notices", data=body) as answer:
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

        async def ask(name: str) -> bytes | None:
            try:
                async with asyncio.timeout(COUNTERS_TIMEOUT_S):
                    async with self._session(name).get("http://sibling/metrics") as answer:
                        return await answer.read() if answer.status == 200 else None
            except (TimeoutError, aiohttp.ClientError, OSError):
                return None

        names = await self._look_around()
        told = dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))
        left = await asyncio.to_thread(self._read_left)
        for counted in left:  # whoever told us and has ended since stands in both
            for name in msgspec.msgpack.decode(counted)[0]:
                told.pop(name, None)
        answers = [counted for counted in told.values() if counted is not None]
        return [*answers, *left], len(answers), len(told) - len(answers)

    def leave_counters(self, counted: bytes, merge: Callable[[Sequence[bytes]], bytes]) -> None:
        """Leave what we have counted for those who stay, with what our predecessors did. Blocks."""
        folder = self._folder / LEFT
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            place, new = folder / str(self._slot), self._folder / f"{LEFT}.{self.name}"
            before = [place.read_bytes()] if place.exists() else []
            new.write_bytes(merge([counted, *before]))
            new.replace(place)

    async def pass_to_works(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Have the worker whose turn it is answer a request to the API: maybe ourselves."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PATIENCE_S
        # Percent-encoded is the same to who reads it there.
        path = quote(request.raw_path.encode("utf-8", "surrogateescape"), safe=_ASCII)
        target = URL(f"http://sibling{path}" if path.startswith("/") else request.path_qs, encoded=True)
        url = target if target.host == "sibling" else URL(f"http://sibling{target.raw_path_qs}", encoded=True)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        while True:
            holder = self._find_worker()
            if holder == self.name:
                return await handler(request)
            try:
                if holder is not None:
                    return await self._pass_on(request, holder, url, headers, with_body=request.body_exists)
            except aiohttp.ClientConnectorError:
                pass  # it is dead, or has left
            except (aiohttp.ClientError, OSError):
                if request.body_exists:  # some of which is gone
                    raise Busy("the worker that answers the API cannot be reached", retry_after_s=1) from None
            if loop.time() > give_up_at:
                raise Busy("no worker answers the API at the moment", retry_after_s=1)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _pass_on(
        self,
        request: web.Request,
        holder: str,
        url: URL,
        headers: Iterable[tuple[str, str]],
        *,
        with_body: bool = False,
    ) -> web.StreamResponse:
        """
        Answer with what a sibling answers.

        Raises:
            aiohttp.ClientError, OSError: It said nothing.
        """
        fields = CIMultiDict((name, value) for name, value in headers if _can_be_sent(value))
        body = request.content if with_body else None
        async with await self._ask(holder, request.method, url, fields, body) as answer:
            kept = CIMultiDict(_take_notes(answer, request[NOTES]))
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
            if request.method == "HEAD" or answer.status in {204, 304}:
                return response
            await _stream(request, response, answer)
            return response

    async def _ask(
        self,
        holder: str,
        method: str,
        url: URL,
        fields: CIMultiDict[str],
        body: aiohttp.StreamReader | None = None,
    ) -> aiohttp.ClientResponse:
        give_up_at = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                return await self._session(holder).request(
                    method,
                    url,
                    headers=fields,
                    data=body,
                    skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectorError as error:
                # Not dead: more of us are connecting than it has room for (man 7 unix).
                if error.errno != errno.EAGAIN or asyncio.get_running_loop().time() > give_up_at:
                    raise
                await asyncio.sleep(LOOK_EVERY_S)

    async def _see_freed(self, holder: str, key: str) -> None:
        """
        Wait until a worker that cannot be reached has lost its claim.

        Raises:
            Busy: It has not.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PATIENCE_S
        claim = self._folder / Place.CLAIMS / key
        while loop.time() < give_up_at:
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(OSError):
                if str(claim.readlink()) == holder:
                    continue
            return
        raise Busy("the worker that fetches this image cannot be reached", retry_after_s=1)

    def _find_worker(self) -> str | None:
        """Return the name of the worker whose turn it is."""
        try:
            return str((self._folder / Place.WORKS).readlink())
        except OSError:
            return None

    async def _look_around(self) -> list[str]:
        """Return the names of all others, and forget those who are gone."""
        names = {path.name.removesuffix(".sock") for path in self._folder.glob("*.sock")} - {self.name}
        for name in self._sessions.keys() - names:
            await self._sessions.pop(name).close()
        return list(names)

    def _read_left(self) -> list[bytes]:
        with suppress(OSError):
            return [path.read_bytes() for path in (self._folder / LEFT).iterdir()]
        return []

    def _session(self, name: str) -> aiohttp.ClientSession:
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self.socket_of(name)), limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENT_MAX_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return session


class Relayed:
    """The body of a sibling's answer, as it comes. Implements `ports.Readable`, from its beginning on."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def read(self, _offset: int, size: int) -> bytes:
        try:
            return await self._answer.content.read(size)
        except (TimeoutError, aiohttp.ClientError):
            raise OriginError("the image broke off on its way from another worker") from None

    async def aclose(self) -> None:
        self._answer.close()


def _take_notes(answer: aiohttp.ClientResponse, notes: Notes) -> list[tuple[str, str]]:
    """Note what a sibling has noted, and return the fields that are passed on."""
    outcome, _, key = answer.headers.get(OUTCOME, notes.outcome).partition(" ")
    notes.outcome, notes.key = outcome, key or notes.key
    return [(name, value) for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_ON]


async def _stream(request: web.Request, response: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
    """Pass the body of an answer on. As in `delivery.py`, a status that has gone out is taken back by a broken end."""
    notes, stall_timeout_s = request[NOTES], request.app[SITE].stall_timeout_s
    transport = cast("asyncio.WriteTransport | None", request.transport)
    if transport is None:
        raise ConnectionResetError("the client has left")
    notes.sent = 0
    try:
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            async with asyncio.timeout(stall_timeout_s):
                await response.write(piece)
                await request.writer.drain()
            notes.sent += len(piece)
        async with asyncio.timeout(stall_timeout_s):
            await response.write_eof()
    except aiohttp.ClientError:
        response.force_close()
        transport.abort()
        notes.code = "cut_short"
    except (ConnectionError, TimeoutError):
        response.force_close()
        transport.abort()
        notes.code = "client_left"


def _can_be_sent(value: str) -> bool:
    """Whether a field's value is text; what is not, means nothing to us."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@web.middleware
async def relays(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Have requests to the API answered where the works are."""
    siblings = request.app[SITE].siblings
    if siblings is None or not request.path.startswith("/api/"):
        return await handler(request)
    return await siblings.pass_to_works(request, handler)
