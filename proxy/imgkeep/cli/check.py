"""`check`: whether the configuration is valid and, with `--live`, whether the configured stores work."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from functools import partial
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from imgkeep.bootstrap.preflight import check_machine, require_owner
from imgkeep.bootstrap.storage import open_storage
from imgkeep.cli.printing import print_json, readable_bytes
from imgkeep.clock import read_clock
from imgkeep.core.errors import StorageError
from imgkeep.storage.bucket.live_check import check_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from imgkeep.bootstrap.storage import RemoteStorage, Storage
    from imgkeep.cli.invocation import Invocation
    from imgkeep.health import Checkable
    from imgkeep.storage.bucket.live_check import Step


async def run(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    await check_machine(config)
    if not arguments.live:
        return await check({}, as_json=arguments.json, out=sys.stdout)
    await asyncio.to_thread(partial(require_owner, config, server_helps=False))
    async with open_storage(config, clock=read_clock) as storage:
        return await _check_live(storage, as_json=arguments.json)


async def _check_live(storage: Storage, *, as_json: bool) -> int:
    if storage.remote is None:
        return await check({"store": storage.local, "database": storage.database}, as_json=as_json, out=sys.stdout)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has ticks
    async with aclosing(_check_bucket(storage.remote)) as steps:
        folder = "disk" if storage.remote.fallback is None else "fallback"
        local: dict[str, Checkable] = {folder: storage.local, "database": storage.database}
        place = storage.remote.bucket.client.place
        return await check(local, steps, place=place, as_json=as_json, out=sys.stdout)


async def _check_bucket(remote: RemoteStorage) -> AsyncGenerator[Step]:
    async with aclosing(check_bucket(remote.bucket, public_url=remote.public_url)) as steps:
        async for step in steps:
            yield step


async def check(
    parts: Mapping[str, Checkable],
    steps: AsyncIterator[Step] | None = None,
    *,
    as_json: bool,
    place: str = "",
    out: TextIO,
) -> int:
    """
    Report that the configuration is valid, then the result of a probe of each of `parts`. 1 if one fails.

    Args:
        parts: Local stores and the database, by name.
        steps: The further probes of `place`, one after the other.
        as_json: Print one JSON object for each.
        place: The bucket of `steps`.
        out: Standard output.
    """

    def report(part: str, words: str, error: str | None = None, remedy: str | None = None, **facts: object) -> None:
        if as_json:
            print_json(out, {"part": part, "works": error is None, "error": error, "remedy": remedy, **facts})
        else:
            out.write(f"{words}\n")

    report("configuration", "configuration: valid")
    status = 0
    for name, part in parts.items():
        try:
            free = await part.check()
        except StorageError as fault:
            status = 1
            report(name, f"{name}: {fault.in_full}", fault.in_full)
        else:
            report(name, f"{name}: works{f', {readable_bytes(free)} free' if free else ''}", free_bytes=free or None)
    if steps is not None:
        report("store", f"store: {place}", place=place)
        async for step in steps:
            if step.error is None:
                note = f": {step.note}" if step.note else ""
                report(step.name, f"✓ {step.name}{note}", note=step.note)
                continue
            status = 1
            remedy = f"\n  remedy: {step.remedy}" if step.remedy else ""
            report(step.name, f"✗ {step.name}: {step.error}{remedy}", step.error, step.remedy)
    return status
