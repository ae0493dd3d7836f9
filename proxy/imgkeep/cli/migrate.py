"""`migrate`: copies one store to another."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from imgkeep.bootstrap.preflight import require_folder_owner, require_source_store
from imgkeep.bootstrap.storage import open_migration
from imgkeep.cli.printing import print_json, printable
from imgkeep.cli.progress import progress
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError, read_store_url
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import OBJECTS
from imgkeep.core.store_url import Folder, S3Bucket

if TYPE_CHECKING:
    from imgkeep.cli.invocation import Invocation
    from imgkeep.core.store_url import StorePlace
    from imgkeep.maintenance.migrate import CopyResult, Migration


async def run(invocation: Invocation) -> int:
    source = _read_store("FROM", invocation.arguments.source, invocation)
    target = _read_store("TO", invocation.arguments.target, invocation)
    if source == target:
        raise ConfigError("TO: is the same store as FROM")
    await asyncio.to_thread(require_source_store, source)
    if isinstance(target, Folder):
        await asyncio.to_thread(require_folder_owner, Path(target.path))
    async with open_migration(invocation.config, source, target, clock=read_clock) as migration:
        return await migrate(migration, as_json=invocation.arguments.json, out=sys.stdout, err=sys.stderr)


def _read_store(argument: str, url: str, invocation: Invocation) -> StorePlace:
    """Read the URL of a store; `AWS_REGION` counts as it does for `store.url`."""
    store = read_store_url(argument, url)
    region = invocation.environment.get("AWS_REGION")
    if isinstance(store, S3Bucket) and store.region is None and region:
        return replace(store, region=region)
    return store


async def migrate(migration: Migration, *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Copy the store, report failures and foreign paths on `err`, and print a summary. 1 if there is a failure."""
    counts: Counter[str] = Counter()
    fault: StorageError | None = None
    try:
        with progress("copying", await migration.count(), err) as bar:
            async with aclosing(migration.run()) as results:
                async for result in results:
                    counts[_counted(result)] += 1
                    bar.advance(1)
                    if result.outcome in {"damaged", "failed", "foreign"}:
                        bar.say(f"{result.outcome:<10}  {printable(result.path)}  {result.reason}".rstrip())
    except StorageError as error:
        fault = error
    facts = {
        name: counts[name]
        for name in ("copied_objects", "copied_records", "skipped", "kept", "damaged", "failed", "foreign")
    }
    if as_json:
        print_json(out, facts)
    else:
        out.write(", ".join(f"{number} {name.replace('_', ' ')}" for name, number in facts.items()) + "\n")
    if fault is not None:
        raise fault
    return 1 if counts["damaged"] or counts["failed"] else 0


def _counted(result: CopyResult) -> str:
    if result.outcome != "copied":
        return result.outcome
    return "copied_objects" if result.path.startswith(OBJECTS) else "copied_records"
