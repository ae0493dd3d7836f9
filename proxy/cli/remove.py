"""`remove`, `restore` and `refetch`: what an operator does to single images, in the store or on a running server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TextIO

import aiohttp

from proxy.cli.save import ServerError
from proxy.core.errors import ImgkeepError, InvalidRequest, StorageError
from proxy.core.model import Digest, Key
from proxy.core.source import read_source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from proxy.core.model import Record, Source
    from proxy.service.refetch import Refetched
    from proxy.service.removal import Restored

    Kind = Literal["key", "digest", "url"]

UNREACHABLE: Final = "the server that --server names cannot be reached, or is no imgkeep"

_HASH: Final = re.compile("[0-9a-f]{64}")


class Refused(InvalidRequest):
    """What was asked for is not done; the message says why."""


class Target(Protocol):
    """Where it is done. All calls raise `ImgkeepError` with what is wrong, and return what is printed."""

    async def remove(self, kind: Kind, name: str, *, force: bool) -> str: ...
    async def restore(self, kind: Kind, name: str) -> str: ...
    async def refetch(self, kind: Kind, name: str, url: str | None) -> str: ...


async def each(
    names: Iterable[str],
    work: Callable[[Kind, str], Awaitable[str]],
    *,
    by_digest: bool = False,
    out: TextIO,
    err: TextIO,
) -> int:
    """Do `work` for each name: a key, a link or, `by_digest`, a digest. 1 if something could not be done."""
    status = 0
    for name in names:
        try:
            kind = _kind_of(name, by_digest=by_digest)
            out.write(f"{await work(kind, name)}\n")
        except StorageError:
            raise
        except ImgkeepError as error:
            err.write(f"imgkeep: {error}\n")
            status = 1
    return status


async def restore_any(target: Target, kind: Kind, name: str) -> str:
    """Restore what a name names. 64 digits may be a key or a digest."""
    if kind != "key":
        return await target.restore(kind, name)
    try:
        return await target.restore("key", name)
    except Refused:
        return await target.restore("digest", name)


def _kind_of(name: str, *, by_digest: bool) -> Kind:
    if by_digest:
        if not _HASH.fullmatch(name):
            raise Refused("a digest has 64 lower-case hexadecimal digits")
        return "digest"
    return "key" if _HASH.fullmatch(name) else "url"


class Remover(Protocol):
    """`service.removal.Remover`, as far as it is needed here."""

    async def remove_key(self, key: Key, *, force: bool = False) -> bool: ...
    async def remove_source(self, source: Source, *, force: bool = False) -> bool: ...
    async def remove_digest(self, digest: Digest, *, force: bool = False) -> bool: ...
    async def restore_key(self, key: Key) -> Restored | None: ...
    async def restore_source(self, source: Source) -> Restored | None: ...
    async def restore_digest(self, digest: Digest) -> Restored | None: ...


class Refetcher(Protocol):
    """`service.refetch.Refetcher`, as far as it is needed here."""

    async def refetch(self, key: Key, source: Source | None = None) -> Refetched | None: ...
    async def refetch_source(self, source: Source) -> Refetched | None: ...


@dataclass(frozen=True, slots=True)
class Store:
    """The configured store itself."""

    remover: Remover
    refetcher: Refetcher
    describe: Callable[[Record], dict[str, object]]

    async def remove(self, kind: Kind, name: str, *, force: bool) -> str:
        if kind == "digest":
            found = await self.remover.remove_digest(Digest(name), force=force)
        elif kind == "key":
            found = await self.remover.remove_key(Key(name), force=force)
        else:
            found = await self.remover.remove_source(read_source(name), force=force)
        if not found:
            raise Refused(f"no image is stored under {_shown(kind, name)}; --force sees to it that none ever is")
        return "removed"

    async def restore(self, kind: Kind, name: str) -> str:
        if kind == "digest":
            restored = await self.remover.restore_digest(Digest(name))
        elif kind == "key":
            restored = await self.remover.restore_key(Key(name))
        else:
            restored = await self.remover.restore_source(read_source(name))
        if restored is None:
            raise Refused(f"nothing is removed under {_shown(kind, name)}")
        return _tell_restored(stored=restored.stored)

    async def refetch(self, kind: Kind, name: str, url: str | None) -> str:
        if kind == "url":
            refetched = await self.refetcher.refetch_source(read_source(name))
        else:
            refetched = await self.refetcher.refetch(Key(name), None if url is None else read_source(url))
        if refetched is None:
            raise Refused(f"no image is stored under {_shown(kind, name)}")
        return _tell_refetched(self.describe(refetched.record), replaced=refetched.replaced)


@dataclass(frozen=True, slots=True)
class Server:
    """A running imgkeep, all of whose workers know of it at once."""

    base: str
    token: str | None

    async def remove(self, kind: Kind, name: str, *, force: bool) -> str:
        query = {"force": "true"} if force else {}
        if kind == "key":
            await self._ask("DELETE", f"/api/images/{name}", params=query)
        else:
            await self._ask("DELETE", "/api/images", params={"src" if kind == "url" else "digest": name, **query})
        return "removed"

    async def restore(self, kind: Kind, name: str) -> str:
        if kind == "key":
            told = await self._ask("POST", f"/api/images/{name}/restore")
        else:
            told = await self._ask("POST", "/api/restore", json={kind: name})
        return _tell_restored(stored=bool(told.get("stored")))

    async def refetch(self, kind: Kind, name: str, url: str | None) -> str:
        if kind == "url":
            told = await self._ask("POST", "/api/refetch", json={"url": name})
        else:
            told = await self._ask("POST", f"/api/images/{name}/refetch", json={"url": url})
        return _tell_refetched(told, replaced=bool(told.get("replaced")))

    async def _ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        try:
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.request(method, f"{self.base.rstrip('/')}{path}", **how) as response,
            ):
                told: object = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise ServerError(UNREACHABLE) from None
        if not isinstance(told, dict):
            raise ServerError(UNREACHABLE)
        if not told.get("success"):
            raise Refused(f"the server says: {told.get('code', 'error')}: {told.get('detail', 'nothing')}")
        return told


def _shown(kind: Kind, name: str) -> str:
    """Name what was meant; a link may be a credential, and is not repeated."""
    return "this link" if kind == "url" else f"the {kind} {name}"


def _tell_restored(*, stored: bool) -> str:
    return "restored" if stored else "restored; the bytes were deleted, and have to be fetched or uploaded again"


def _tell_refetched(facts: dict[str, Any] | dict[str, object], *, replaced: bool) -> str:
    return f"{'replaced' if replaced else 'unchanged'} {facts['url']}"
