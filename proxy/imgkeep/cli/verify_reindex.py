"""`verify` and `reindex`: read the whole store again, to find damage or to fill the image index."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.bootstrap.preflight import require_owner, require_store
from imgkeep.bootstrap.storage import describe_store, open_storage
from imgkeep.cli.printing import as_line, print_json, printable
from imgkeep.cli.progress import progress
from imgkeep.clock import read_clock
from imgkeep.cluster.nodes.upkeep import adopt_store
from imgkeep.core.errors import StorageError
from imgkeep.maintenance import verify_reindex as maintenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.cli.invocation import Invocation
    from imgkeep.core.records import Record
    from imgkeep.database import Database, ImageIndex
    from imgkeep.storage.interfaces import ListableStore

REMEDY: Final = (
    "A request fetches an incomplete image again; `imgkeep refetch KEY` does so now. An answer that comes back equal\n"
    "three times over a day counts as all that its owner has.\n"
)


async def run(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    await asyncio.to_thread(require_store, config)
    await asyncio.to_thread(partial(require_owner, config, server_helps=False))
    async with open_storage(config, clock=read_clock, adopting=arguments.command == "reindex") as storage:
        stores, database = storage.archives, storage.database
        if arguments.command == "reindex":
            await adopt_store(database.engine, describe_store(config))
            return await reindex(stores, database.image_index, as_json=arguments.json, out=sys.stdout)
        return await verify(stores, database, as_json=arguments.json, out=sys.stdout, err=sys.stderr)


async def verify(
    stores: Sequence[ListableStore], database: Database, *, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """
    Read everything that is stored, and print each finding and a summary. 1 if an object is damaged, missing or
    unreadable. An incomplete image is as its origin sent it, and no fault of the store; a foreign file is none of ours;
    removed bytes that came back are deleted. What waits in the fallback of another node is neither missing nor an
    orphan: that node is about to upload it.
    """
    counts: Counter[str] = Counter()
    with progress("verifying", None, err) as bar:
        for number, store in enumerate(stores):

            async def note(record: Record, *, waits_at: str | None = "" if number > 0 else None) -> None:
                await database.image_index.put(replace(record, waits_at=waits_at))

            async for found in maintenance.verify(store, note):
                finding = None if found is None or await _waits_elsewhere(database, found) else found
                counts[finding.kind if finding else "good"] += 1
                bar.advance(1)
                if finding is None:
                    continue
                key = {} if finding.key is None else {"key": finding.key}
                facts = {"kind": finding.kind, "path": finding.path, **key}
                bar.answer(
                    out, as_line(facts) if as_json else f"{finding.kind:<10}  {finding.key or printable(finding.path)}"
                )
    kinds = ("good", "damaged", "missing", "unreadable", "orphan", "incomplete", "foreign", "removed")
    if as_json:
        print_json(out, {kind: counts[kind] for kind in kinds})
    else:
        out.write(", ".join(f"{counts[kind]} {kind}" for kind in kinds) + "\n")
        if counts["incomplete"]:
            out.write(REMEDY)
    return 1 if counts["damaged"] or counts["missing"] or counts["unreadable"] else 0


async def _waits_elsewhere(database: Database, finding: maintenance.Finding) -> bool:
    """Tell whether a finding is about an object that another node is about to upload."""
    if finding.kind not in {"missing", "orphan"}:
        return False
    with suppress(StorageError):  # hours of reading do not end with a database that is away for a moment
        return bool(await database.outbox.holders(finding.digest))
    return False


async def reindex(stores: Sequence[ListableStore], image_index: ImageIndex, *, as_json: bool, out: TextIO) -> int:
    """Fill the image index from the records, and print how many there are."""
    images = await maintenance.reindex(stores, image_index)
    if as_json:
        print_json(out, {"images": images})
    else:
        out.write(f"{images} images\n")
    return 0
