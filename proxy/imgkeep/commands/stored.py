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
    require_database_file,
    require_folder_owner,
    require_owner,
    require_source_store,
    require_store,
)
from imgkeep.bootstrap.storage import Storage, open_migration, open_storage, permanent_url
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
from imgkeep.commands.invocation import Invocation, make_client, make_save_target
from imgkeep.config import ConfigError, check_mount
from imgkeep.core.store_url import Folder
from imgkeep.images.record_facts import describe_record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from imgkeep.bootstrap.storage import RemoteStorage
    from imgkeep.config import Config
    from imgkeep.core.records import Record
    from imgkeep.core.store_url import Bucket
    from imgkeep.health import Checkable
    from imgkeep.images.record_facts import ImageFacts

# ruff: noqa: PLC0415 - fetching, and what speaks to a bucket, take long to import, and most commands do neither


async def migrate_store(call: Invocation, source: Folder | Bucket, target: Folder | Bucket) -> int:
    await asyncio.to_thread(require_source_store, source)
    if isinstance(target, Folder):
        await asyncio.to_thread(require_folder_owner, Path(target.path))
    async with open_migration(call.config, source, target, clock=read_clock) as migration:
        return await migrate.migrate(migration, as_json=call.arguments.json, out=sys.stdout, err=sys.stderr)


async def save_links(call: Invocation, links: Sequence[str]) -> int:
    keep = partial(save.save, links, as_json=call.arguments.json, out=sys.stdout, err=sys.stderr)
    if call.arguments.server:
        return await keep(save.Server(make_client(call)))
    from imgkeep.bootstrap.services import open_services

    await asyncio.to_thread(partial(require_owner, call.config, server_helps=True))
    async with open_services(call.config) as services:
        return await keep(make_save_target(call, services))


async def change_records(call: Invocation, names: Sequence[str]) -> int:
    """Remove, restore or fetch again what is named."""
    if getattr(call.arguments, "url", None) is not None and len(names) != 1:
        raise ConfigError("--url: is the link of one key")
    if call.arguments.server:
        return await _change_at(call, names, remove.Server(make_client(call)))
    from imgkeep.bootstrap.services import open_services

    await asyncio.to_thread(require_store, call.config)
    await asyncio.to_thread(partial(require_owner, call.config, server_helps=True))
    async with open_services(call.config) as services:
        describe = partial(services.image_service.describe, base=call.base)
        return await _change_at(
            call, names, remove.Store(services.remover, services.refetcher, describe, services.image_service.identify)
        )


async def _change_at(call: Invocation, names: Sequence[str], target: remove.Target) -> int:
    arguments = call.arguments
    tell = partial(remove.each, names, as_json=arguments.json, out=sys.stdout, err=sys.stderr)
    match arguments.command:
        case "remove":
            return await tell(partial(target.remove, force=arguments.force), by_digest=arguments.digest)
        case "restore":
            return await tell(partial(remove.restore_name, target))
        case _:
            return await tell(partial(target.refetch, url=arguments.url))


async def exchange_images(call: Invocation) -> int:
    """Take a folder of images in, or tell other programs what is stored."""
    arguments, config = call.arguments, call.config
    if arguments.command == "import":
        from imgkeep.bootstrap.services import open_services

        check_mount("--mount", arguments.mount)
        if not arguments.folder.is_dir():
            raise ConfigError(f"{arguments.folder}: is not a folder")
        await asyncio.to_thread(partial(require_owner, config, server_helps=False))
        if arguments.mount not in {legacy.mount for legacy in config.legacy}:
            sys.stderr.write("imgkeep: old names answer once [[legacy]] names this mount in the configuration\n")
        async with open_services(config) as services:
            return await folders.import_folder(
                arguments.folder,
                arguments.mount,
                services.saver,
                as_json=arguments.json,
                out=sys.stdout,
                err=sys.stderr,
            )
    async with _reading(config) as parts:
        url_of = partial(permanent_url, parts.remote, call.base)
        return await folders.export(
            parts.database.image_index, url_of=url_of, as_json=arguments.format == "jsonl", out=sys.stdout
        )


@asynccontextmanager
async def _reading(config: Config) -> AsyncGenerator[Storage]:
    """Open what is stored to read it, and make nothing that is not there."""
    await asyncio.to_thread(require_database_file, config)
    async with open_storage(config, clock=read_clock, reading=True) as parts:
        await _warn_if_incomplete(parts)
        yield parts


async def list_stored(call: Invocation) -> int:
    arguments = call.arguments
    show = partial(stored.list_images, as_json=arguments.json, out=sys.stdout)
    if arguments.server:
        return await show(stored.images_on_server(make_client(call), limit=arguments.limit))
    async with _reading(call.config) as parts:

        def describe(record: Record) -> ImageFacts:
            storage = "local" if record.pending or parts.remote is None else "s3"
            return describe_record(record, url=permanent_url(parts.remote, call.base, record), storage=storage)

        return await show(stored.images_in_store(parts.database.image_index, describe, limit=arguments.limit))


async def maintain(call: Invocation) -> int:
    """Look after what is stored, or at all parts."""
    arguments, config, as_json = call.arguments, call.config, call.arguments.json
    if arguments.command == "stats":
        async with _reading(config) as parts:
            return await stored.stats(parts.database, now=read_clock(), as_json=as_json, out=sys.stdout)
    if arguments.command == "check":
        await check_machine(config)
        if not arguments.live:
            return await look.check({}, as_json=as_json, out=sys.stdout)
    else:
        await asyncio.to_thread(require_store, config)
    await asyncio.to_thread(partial(require_owner, config, server_helps=False))
    async with open_storage(config, clock=read_clock) as parts:
        image_index = parts.database.image_index
        match arguments.command:
            case "check":
                return await _check_live(parts, as_json=as_json)
            case "verify":
                return await upkeep.verify(parts.archives, image_index, as_json=as_json, out=sys.stdout, err=sys.stderr)
            case _:
                return await upkeep.reindex(parts.archives, image_index, as_json=as_json, out=sys.stdout)


async def _check_live(parts: Storage, *, as_json: bool) -> int:
    if parts.remote is None:
        return await look.check({"store": parts.local, "database": parts.database}, as_json=as_json, out=sys.stdout)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has ticks
    async with aclosing(_steps(parts.remote)) as steps:
        local: dict[str, Checkable] = {"fallback": parts.local, "database": parts.database}
        place = parts.remote.bucket.client.place
        return await look.check(local, steps, place=place, as_json=as_json, out=sys.stdout)


async def _warn_if_incomplete(parts: Storage) -> None:
    if not parts.database.image_index.complete:
        await parts.database.check()  # one that is away has another remedy
        sys.stderr.write("imgkeep: the image index is not complete; `imgkeep reindex` fills it from the records\n")


async def _steps(remote: RemoteStorage) -> AsyncGenerator[tuple[str, str | None, str | None]]:
    from imgkeep.storage.s3.diagnostics import diagnose

    async with aclosing(diagnose(remote.bucket, public_url=remote.public_url)) as steps:
        async for step in steps:
            yield step.name, step.error, step.remedy
