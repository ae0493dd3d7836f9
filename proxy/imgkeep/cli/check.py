"""`check`: whether the configuration is valid, pictures can be derived and, with `--live`, the stores work."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from imgkeep.bootstrap.derived import check_derive_process
from imgkeep.bootstrap.preflight import check_machine, require_owner
from imgkeep.bootstrap.storage import open_storage
from imgkeep.cli.printing import print_json, readable_bytes
from imgkeep.clock import read_clock
from imgkeep.cluster.nodes.upkeep import compare_secret
from imgkeep.config import data_folder
from imgkeep.core.derived.names import FORMATS
from imgkeep.core.errors import Busy, NotSupported, StorageError
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.local.node_id import read_node_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

    from imgkeep.bootstrap.storage import RemoteStorage, Storage
    from imgkeep.cli.invocation import Invocation
    from imgkeep.config import Config
    from imgkeep.health import Checkable
    from imgkeep.storage.bucket.live_check import Step

    Compare = Callable[[], Awaitable[str]]


async def run(invocation: Invocation) -> int:
    await check_machine(invocation.config)
    status = await _check_parts(invocation)
    await _report_derived(invocation.config, as_json=invocation.arguments.json)
    return status


async def _report_derived(config: Config, *, as_json: bool) -> None:
    """Report whether pictures can be derived. No check fails without: images are stored and served all the same."""
    try:
        ready = await check_derive_process(config)
    except (Busy, NotSupported) as fault:
        if as_json:
            print_json(sys.stdout, {"part": "derived pictures", "works": False, "error": str(fault), "remedy": None})
        else:
            sys.stdout.write(f"derived pictures: none: {fault}\n")
        return
    written = [each.name.lower() for each in FORMATS if each.name in ready.writes]
    missing = [each.name.lower() for each in FORMATS if each.name not in ready.writes]
    if as_json:
        facts = {"error": None, "remedy": None, "libvips": ready.version, "formats": written, "missing": missing}
        print_json(sys.stdout, {"part": "derived pictures", "works": True, **facts})
    else:
        lack = f"; it cannot write {', '.join(missing)}" if missing else ""
        sys.stdout.write(f"derived pictures: as {', '.join(written)}, by libvips {ready.version}{lack}\n")


async def _check_parts(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    if not arguments.live:
        return await check({}, as_json=arguments.json, out=sys.stdout)
    await asyncio.to_thread(partial(require_owner, config, server_helps=False))
    async with open_storage(config, clock=read_clock) as storage:
        compare = None
        if config.database.is_shared:
            host = await asyncio.to_thread(read_node_id, data_folder(config))
            compare = partial(compare_secret, storage.database.engine, config.cluster.secret, host)
        return await _check_live(storage, compare, has_pictures=config.derive.store, as_json=arguments.json)


async def _check_live(storage: Storage, compare: Compare | None, *, has_pictures: bool, as_json: bool) -> int:
    if storage.remote is None:
        parts: dict[str, Checkable] = {"store": storage.local, "database": storage.database}
        return await check(parts, cluster=compare, as_json=as_json, out=sys.stdout)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has ticks
    async with aclosing(_check_bucket(storage.remote, has_pictures=has_pictures)) as steps:
        folder = "disk" if storage.remote.fallback is None else "fallback"
        local: dict[str, Checkable] = {folder: storage.local, "database": storage.database}
        place = storage.remote.bucket.client.place
        return await check(local, steps, cluster=compare, place=place, as_json=as_json, out=sys.stdout)


async def _check_bucket(remote: RemoteStorage, *, has_pictures: bool) -> AsyncGenerator[Step]:
    public_path = remote.public_path if has_pictures else None
    async with aclosing(check_bucket(remote.bucket, public_url=remote.public_url, public_path=public_path)) as steps:
        async for step in steps:
            yield step


async def check(  # noqa: PLR0913 - all but two by name
    parts: Mapping[str, Checkable],
    steps: AsyncIterator[Step] | None = None,
    *,
    cluster: Compare | None = None,
    as_json: bool,
    place: str = "",
    out: TextIO,
) -> int:
    """
    Report that the configuration is valid, then the result of a probe of each of `parts`. 1 if one fails.

    Args:
        parts: Local stores and the database, by name.
        steps: The further probes of `place`, one after the other.
        cluster: Compares this node with the others of its cluster.
        as_json: Print one JSON object for each.
        place: The bucket of `steps`.
        out: Standard output.
    """
    report = _Report(as_json, out)
    report("configuration", "configuration: valid")
    works = [await _check_part(name, part, report) for name, part in parts.items()]
    if cluster is not None:
        works.append(await _check_cluster(cluster, report))
    if steps is not None:
        report("store", f"store: {place}", place=place)
        works += [_report_step(step, report) async for step in steps]
    return 0 if all(works) else 1


@dataclass(frozen=True, slots=True)
class _Report:
    """The report, for people or for programs."""

    as_json: bool
    out: TextIO

    def __call__(
        self, part: str, words: str, error: str | None = None, remedy: str | None = None, **facts: object
    ) -> bool:
        """Report one result; tell whether it is good."""
        if self.as_json:
            print_json(self.out, {"part": part, "works": error is None, "error": error, "remedy": remedy, **facts})
        else:
            self.out.write(f"{words}\n")
        return error is None


async def _check_part(name: str, part: Checkable, report: _Report) -> bool:
    try:
        free = await part.check()
    except StorageError as fault:
        return report(name, f"{name}: {fault.in_full}", fault.in_full)
    return report(name, f"{name}: works{f', {readable_bytes(free)} free' if free else ''}", free_bytes=free or None)


async def _check_cluster(compare: Compare, report: _Report) -> bool:
    try:
        note = await compare()
    except StorageError as fault:
        return report("cluster", f"cluster: {fault.in_full}", fault.in_full)
    return report("cluster", f"cluster: works: {note}", note=note)


def _report_step(step: Step, report: _Report) -> bool:
    if step.error is None:
        note = f": {step.note}" if step.note else ""
        return report(step.name, f"✓ {step.name}{note}", note=step.note)
    remedy = f"\n  remedy: {step.remedy}" if step.remedy else ""
    return report(step.name, f"✗ {step.name}: {step.error}{remedy}", step.error, step.remedy)
