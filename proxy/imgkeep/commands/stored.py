"""Commands that take a store, or a server in its place."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing, asynccontextmanager
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from imgkeep.bootstrap.preflight import (
    check_machine,
    insist_on_owner,
    insist_on_owner_of,
    insist_on_records,
    insist_on_source,
    insist_on_store,
)
from imgkeep.bootstrap.storage import Parts, open_migration, open_parts, permanent_url
from imgkeep.cli import (
    check as look,
)
from imgkeep.cli import (
    import_export as folders,
)
from imgkeep.cli import (
    list_stats as stored,
)
from imgkeep.cli import (
    migrate,
    remove,
    save,
)
from imgkeep.cli import (
    verify_reindex as upkeep,
)
from imgkeep.clock import read_clock
from imgkeep.commands.invocation import Call, client_of, store_of
from imgkeep.config import ConfigError, check_mount
from imgkeep.core.store_url import Folder
from imgkeep.images.record_facts import describe_record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from imgkeep.bootstrap.storage import RemoteParts
    from imgkeep.config import Config
    from imgkeep.core.records import Record
    from imgkeep.core.store_url import Bucket
    from imgkeep.ports import Watched

# ruff: noqa: PLC0415 - fetching, and what speaks to a bucket, take long to import, and most commands do neither


async def migrate_store(call: Call, source: Folder | Bucket, target: Folder | Bucket) -> int:
    await asyncio.to_thread(insist_on_source, source)
    if isinstance(target, Folder):
        await asyncio.to_thread(insist_on_owner_of, Path(target.path))
    async with open_migration(call.config, source, target, clock=read_clock) as migration:
        return await migrate.migrate(migration, as_json=call.arguments.json, out=sys.stdout, err=sys.stderr)


async def save_links(call: Call, links: Sequence[str]) -> int:
    keep = partial(save.save, links, as_json=call.arguments.json, out=sys.stdout, err=sys.stderr)
    if call.arguments.server:
        return await keep(save.Server(client_of(call)))
    from imgkeep.bootstrap.services import open_works

    await asyncio.to_thread(partial(insist_on_owner, call.config, server_helps=True))
    async with open_works(call.config) as works:
        return await keep(store_of(call, works))


async def change_records(call: Call, names: Sequence[str]) -> int:
    """Remove, restore or fetch again what is named."""
    if getattr(call.arguments, "url", None) is not None and len(names) != 1:
        raise ConfigError("--url: is the link of one key")
    if call.arguments.server:
        return await _change_at(call, names, remove.Server(client_of(call)))
    from imgkeep.bootstrap.services import open_works

    await asyncio.to_thread(insist_on_records, call.config)
    await asyncio.to_thread(partial(insist_on_owner, call.config, server_helps=True))
    async with open_works(call.config) as works:
        describe = partial(works.keeper.describe, base=call.base)
        return await _change_at(
            call, names, remove.Store(works.remover, works.refetcher, describe, works.keeper.identify)
        )


async def _change_at(call: Call, names: Sequence[str], target: remove.Target) -> int:
    arguments = call.arguments
    tell = partial(remove.each, names, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
    match arguments.command:
        case "remove":
            return await tell(partial(target.remove, force=arguments.force), by_digest=arguments.digest)
        case "restore":
            return await tell(partial(remove.restore_any, target))
        case _:
            return await tell(partial(target.refetch, url=arguments.url))


async def exchange_images(call: Call) -> int:
    """Take a folder of images in, or tell other programs what is stored."""
    arguments, config = call.arguments, call.config
    if arguments.command == "import":
        from imgkeep.bootstrap.services import open_works

        check_mount("--mount", arguments.mount)
        if not arguments.folder.is_dir():
            raise ConfigError(f"{arguments.folder}: is not a folder")
        await asyncio.to_thread(partial(insist_on_owner, config, server_helps=False))
        if arguments.mount not in {legacy.mount for legacy in config.legacy}:
            sys.stderr.write("imgkeep: old names answer once [[legacy]] names this mount in the configuration\n")
        async with open_works(config) as works:
            return await folders.adopt(
                arguments.folder,
                arguments.mount,
                works.saver,
                as_json=arguments.json,
                out=sys.stdout,
                err=sys.stderr,
            )
    async with _reading(config) as parts:
        url_of = partial(permanent_url, parts.remote, call.base)
        return await folders.export(parts.catalog, url_of=url_of, as_json=arguments.format == "jsonl", out=sys.stdout)


@asynccontextmanager
async def _reading(config: Config) -> AsyncGenerator[Parts]:
    """Open what is stored to read it, and make nothing that is not there."""
    await asyncio.to_thread(insist_on_store, config)
    async with open_parts(config, clock=read_clock, reading=True) as parts:
        await _warn_of_gaps(parts)
        yield parts


async def list_stored(call: Call) -> int:
    arguments = call.arguments
    show = partial(stored.list_images, as_json=arguments.json, out=sys.stdout)
    if arguments.server:
        return await show(stored.images_of(client_of(call), limit=arguments.limit))
    async with _reading(call.config) as parts:

        def describe(record: Record) -> dict[str, object]:
            storage = "local" if record.pending or parts.remote is None else "s3"
            return describe_record(record, url=permanent_url(parts.remote, call.base, record), storage=storage)

        return await show(stored.images_in(parts.catalog, describe, limit=arguments.limit))


async def maintain(call: Call) -> int:
    """Look after what is stored, or at all parts."""
    arguments, config, as_json = call.arguments, call.config, call.arguments.json
    if arguments.command == "stats":
        async with _reading(config) as parts:
            complete, now = parts.catalog.complete, read_clock()
            return await stored.stats(parts.catalog, complete=complete, now=now, as_json=as_json, out=sys.stdout)
    if arguments.command == "check":
        await check_machine(config)
        if not arguments.live:
            return await look.check({}, as_json=as_json, out=sys.stdout)
    else:
        await asyncio.to_thread(insist_on_records, config)
    await asyncio.to_thread(partial(insist_on_owner, config, server_helps=False))
    async with open_parts(config, clock=read_clock) as parts:
        catalog = parts.catalog
        match arguments.command:
            case "check":
                return await _check_live(parts, as_json=as_json)
            case "verify":
                return await upkeep.verify(parts.archives, catalog, as_json=as_json, out=sys.stdout, err=sys.stderr)
            case _:
                return await upkeep.reindex(parts.archives, catalog, as_json=as_json, out=sys.stdout)


async def _check_live(parts: Parts, *, as_json: bool) -> int:
    if parts.remote is None:
        return await look.check({"store": parts.disk, "catalog": parts.catalog}, as_json=as_json, out=sys.stdout)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has ticks
    async with aclosing(_steps(parts.remote)) as steps:
        local: dict[str, Watched] = {"fallback": parts.disk, "catalog": parts.catalog}
        place = parts.remote.bucket.client.place
        return await look.check(local, steps, place=place, as_json=as_json, out=sys.stdout)


async def _warn_of_gaps(parts: Parts) -> None:
    if not parts.catalog.complete:
        await parts.catalog.check()  # one that is away has another remedy
        sys.stderr.write("imgkeep: the catalog is not complete; `imgkeep reindex` fills it from the records\n")


async def _steps(remote: RemoteParts) -> AsyncGenerator[tuple[str, str | None, str | None]]:
    from imgkeep.storage.s3.diagnostics import check_up

    async with aclosing(check_up(remote.bucket, public_url=remote.public_url)) as steps:
        async for step in steps:
            yield step.name, step.error, step.remedy
