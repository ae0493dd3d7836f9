"""`remove`, `restore` and `refetch`: what an operator does to single images, in the store or on a running server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TextIO

from imgkeep.cli.printing import print_json, printable
from imgkeep.core.errors import ImgkeepError, InvalidRequest, StorageError
from imgkeep.core.records import Digest, Key
from imgkeep.core.source_url import read_source
from imgkeep.images.record_facts import as_dict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from imgkeep.cli.client import Client
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.record_facts import ImageFacts
    from imgkeep.images.refetch import Refetched
    from imgkeep.images.removal import Restored

    Kind = Literal["key", "digest", "url"]

_HASH: Final = re.compile("[0-9a-f]{64}")


class Refused(InvalidRequest):
    """What was asked for is not done; the message says why, and `told` is the code of the API."""

    def __init__(self, words: str, told: str = "not_found") -> None:
        super().__init__(words)
        self.told = told


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, for people and, as the API tells it, for programs."""

    words: str
    facts: Mapping[str, object]


class Target(Protocol):
    """Where it is done. All calls raise `ImgkeepError` with what is wrong, and return what is printed."""

    async def remove(self, kind: Kind, name: str, *, force: bool) -> Done: ...
    async def restore(self, kind: Kind, name: str) -> Done: ...
    async def refetch(self, kind: Kind, name: str, url: str | None) -> Done: ...


async def each(  # noqa: PLR0913 - all but two by keyword
    names: Iterable[str],
    work: Callable[[Kind, str], Awaitable[Done]],
    *,
    by_digest: bool = False,
    as_json: bool = False,
    out: TextIO,
    err: TextIO,
) -> int:
    """Do `work` for each name: a key, a link or, `by_digest`, a digest. 1 if something could not be done."""
    status = 0
    for name in names:
        try:
            kind = _kind_of(name, by_digest=by_digest)
            done = await work(kind, name)
        except StorageError:
            raise
        except ImgkeepError as error:
            status = 1
            if as_json:
                code = error.told if isinstance(error, Refused) else error.code
                print_json(out, {"success": False, "name": name, "error": {"code": code, "detail": str(error)}})
            else:
                err.write(f"imgkeep: {error}\n")
            continue
        if as_json:
            print_json(out, {"success": True, "name": name, **done.facts})
        else:
            out.write(f"{printable(done.words)}\n")
        out.flush()
    return status


async def restore_name(target: Target, kind: Kind, name: str) -> Done:
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
            raise Refused("a digest has 64 lower-case hexadecimal digits", "invalid_request")
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
    describe: Callable[[Record], ImageFacts]
    identify: Callable[[Source], SourceInfo]

    async def remove(self, kind: Kind, name: str, *, force: bool) -> Done:
        if kind == "digest":
            found = await self.remover.remove_digest(Digest(name), force=force)
        elif kind == "key":
            found = await self.remover.remove_key(Key(name), force=force)
        else:
            found = await self.remover.remove_source(read_source(name), force=force)
        if not found:
            raise Refused(f"no image is stored under {_shown(kind, name)}; --force sees to it that none ever is")
        return Done("removed", self._named(kind, name))

    async def restore(self, kind: Kind, name: str) -> Done:
        if kind == "digest":
            restored = await self.remover.restore_digest(Digest(name))
        elif kind == "key":
            restored = await self.remover.restore_key(Key(name))
        else:
            restored = await self.remover.restore_source(read_source(name))
        if restored is None:
            raise Refused(f"nothing is removed under {_shown(kind, name)}")
        told = {"digest": restored.digest, "keys": restored.keys, "stored": restored.stored}
        return _tell_restored({**self._named(kind, name), "restored": True, **told})

    async def refetch(self, kind: Kind, name: str, url: str | None) -> Done:
        if kind == "url":
            refetched = await self.refetcher.refetch_source(read_source(name))
        else:
            refetched = await self.refetcher.refetch(Key(name), None if url is None else read_source(url))
        if refetched is None:
            raise Refused(f"no image is stored under {_shown(kind, name)}")
        return _tell_refetched({**as_dict(self.describe(refetched.record)), "replaced": refetched.replaced})

    def _named(self, kind: Kind, name: str) -> dict[str, object]:
        return {"key": self.identify(read_source(name)).key} if kind == "url" else {kind: name}


@dataclass(frozen=True, slots=True)
class Server:
    """A running imgkeep, all of whose workers know of it at once."""

    client: Client

    async def remove(self, kind: Kind, name: str, *, force: bool) -> Done:
        query = {"force": "true"} if force else {}
        if kind == "key":
            told = await self._ask("DELETE", f"/api/images/{name}", params=query)
        else:
            named = {"src" if kind == "url" else "digest": name, **query}
            told = await self._ask("DELETE", "/api/images", params=named)
        return Done("removed", told)

    async def restore(self, kind: Kind, name: str) -> Done:
        if kind == "key":
            told = await self._ask("POST", f"/api/images/{name}/restore")
        else:
            told = await self._ask("POST", "/api/restore", json={kind: name})
        return _tell_restored(told)

    async def refetch(self, kind: Kind, name: str, url: str | None) -> Done:
        if kind == "url":
            told = await self._ask("POST", "/api/refetch", json={"url": name})
        else:
            told = await self._ask("POST", f"/api/images/{name}/refetch", json={"url": url})
        return _tell_refetched(told)

    async def _ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        async with self.client.session() as session:
            told = await self.client.ask(session, method, path, **how)
        if not told.pop("success", False):
            code = str(told.get("code", "error"))
            raise Refused(f"the server says: {code}: {told.get('detail', 'nothing')}", code)
        return told


def _shown(kind: Kind, name: str) -> str:
    """Name what was meant; a link may be a credential, and is not repeated."""
    return "this link" if kind == "url" else f"the {kind} {name}"


def _tell_restored(facts: Mapping[str, object]) -> Done:
    lost = "; the bytes were deleted, and have to be fetched or uploaded again"
    return Done("restored" if facts.get("stored") else f"restored{lost}", facts)


def _tell_refetched(facts: Mapping[str, object]) -> Done:
    return Done(f"{'replaced' if facts.get('replaced') else 'unchanged'} {facts.get('url')}", facts)
