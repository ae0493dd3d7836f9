"""`remove`, `restore` and `refetch`: changes to single images, in the store or through a running server."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, TypeAlias

from imgkeep.bootstrap.preflight import require_owner, require_store
from imgkeep.cli.invocation import make_client, read_urls
from imgkeep.cli.printing import print_json, printable
from imgkeep.config import ConfigError
from imgkeep.core.errors import ImgkeepError, InvalidRequest, StorageError
from imgkeep.core.records import Digest, Key
from imgkeep.core.source_url import read_source
from imgkeep.images.record_json import as_dict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from imgkeep.cli.client import Client
    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.invocation import Invocation
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.operator_refetch import Refetcher
    from imgkeep.images.record_json import ImageFacts
    from imgkeep.images.removal import Remover

    Kind = Literal["key", "digest", "url"]
    Target: TypeAlias = "StoreTarget | ServerTarget"
    """All methods raise `ImgkeepError` with the reason, and return what to print."""

_HASH: Final = re.compile("[0-9a-f]{64}")


class Refused(InvalidRequest):
    """A change that the store or the server refuses. `problem_code`: as in the API."""

    def __init__(self, reason: str, problem_code: str = "not_found") -> None:
        super().__init__(reason)
        self.problem_code = problem_code


@dataclass(frozen=True, slots=True)
class Done:
    """The report of one change. `words`: for people; `facts`: for programs, as in the API."""

    words: str
    facts: Mapping[str, object]


def run(invocation: Invocation) -> Command:
    names = list(read_urls(invocation.arguments.names))
    if getattr(invocation.arguments, "url", None) is not None and len(names) != 1:
        raise ConfigError("--url: is the link of one key")
    if invocation.arguments.server:
        return _run_with(invocation, names, ServerTarget(make_client(invocation)))
    return _run_in_store(invocation, names)


async def _run_in_store(invocation: Invocation, names: Sequence[str]) -> int:
    from imgkeep.bootstrap.command_services import open_command_services  # noqa: PLC0415 - `--server` opens no store

    config = invocation.config
    await asyncio.to_thread(require_store, config)
    await asyncio.to_thread(partial(require_owner, config, server_helps=True))
    async with open_command_services(config) as services:
        describe = partial(services.image_service.describe, base=invocation.base)
        target = StoreTarget(services.remover, services.refetcher, describe, services.image_service.identify)
        return await _run_with(invocation, names, target)


async def _run_with(invocation: Invocation, names: Sequence[str], target: Target) -> int:
    arguments = invocation.arguments
    change = partial(change_each, names, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
    match arguments.command:
        case "remove":
            return await change(partial(target.remove, force=arguments.force), by_digest=arguments.digest)
        case "restore":
            return await change(partial(restore_name, target))
        case _:
            return await change(partial(target.refetch, url=arguments.url))


async def change_each(  # noqa: PLR0913 - all but two by keyword
    names: Iterable[str],
    work: Callable[[Kind, str], Awaitable[Done]],
    *,
    by_digest: bool = False,
    as_json: bool = False,
    out: TextIO,
    err: TextIO,
) -> int:
    """Do `work` for each name: a key, a link or, `by_digest`, a digest. 1 if one change is refused."""
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
                code = error.problem_code if isinstance(error, Refused) else error.code
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
    """Restore a key, a digest or a link. 64 digits may be a key or a digest."""
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


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """Changes in the configured store itself."""

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
            raise Refused(f"no image is stored under {_shown(kind, name)}; with --force none ever is")
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
        facts = {"digest": restored.digest, "keys": restored.keys, "stored": restored.stored}
        return _report_restored({**self._named(kind, name), "restored": True, **facts})

    async def refetch(self, kind: Kind, name: str, url: str | None) -> Done:
        if kind == "url":
            refetched = await self.refetcher.refetch_source(read_source(name))
        else:
            refetched = await self.refetcher.refetch(Key(name), None if url is None else read_source(url))
        if refetched is None:
            raise Refused(f"no image is stored under {_shown(kind, name)}")
        return _report_refetched({**as_dict(self.describe(refetched.record)), "replaced": refetched.replaced})

    def _named(self, kind: Kind, name: str) -> dict[str, object]:
        return {"key": self.identify(read_source(name)).key} if kind == "url" else {kind: name}


@dataclass(frozen=True, slots=True)
class ServerTarget:
    """Changes through a running imgkeep, which all of its workers see at once."""

    client: Client

    async def remove(self, kind: Kind, name: str, *, force: bool) -> Done:
        query = {"force": "true"} if force else {}
        if kind == "key":
            answer = await self._call("DELETE", f"/api/images/{name}", params=query)
        else:
            named = {"src" if kind == "url" else "digest": name, **query}
            answer = await self._call("DELETE", "/api/images", params=named)
        return Done("removed", answer)

    async def restore(self, kind: Kind, name: str) -> Done:
        if kind == "key":
            answer = await self._call("POST", f"/api/images/{name}/restore")
        else:
            answer = await self._call("POST", "/api/restore", json={kind: name})
        return _report_restored(answer)

    async def refetch(self, kind: Kind, name: str, url: str | None) -> Done:
        if kind == "url":
            answer = await self._call("POST", "/api/refetch", json={"url": name})
        else:
            answer = await self._call("POST", f"/api/images/{name}/refetch", json={"url": url})
        return _report_refetched(answer)

    async def _call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        async with self.client.session() as session:
            answer = await self.client.request(session, method, path, **how)
        if not answer.pop("success", False):
            code = str(answer.get("code", "error"))
            raise Refused(f"the server says: {code}: {answer.get('detail', 'nothing')}", code)
        return answer


def _shown(kind: Kind, name: str) -> str:
    """Return how a message names an image. It does not repeat a link, which may be a credential."""
    return "this link" if kind == "url" else f"the {kind} {name}"


def _report_restored(facts: Mapping[str, object]) -> Done:
    lost = "; the bytes were deleted, and have to be fetched or uploaded again"
    return Done("restored" if facts.get("stored") else f"restored{lost}", facts)


def _report_refetched(facts: Mapping[str, object]) -> Done:
    return Done(f"{'replaced' if facts.get('replaced') else 'unchanged'} {facts.get('url')}", facts)
