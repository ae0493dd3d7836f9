"""`list` and `stats`: the images of the image index, and their number."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TextIO

from imgkeep.bootstrap.storage import permanent_url
from imgkeep.cli.invocation import make_client
from imgkeep.cli.printing import print_facts, print_json, printable, readable_bytes, readable_time
from imgkeep.cli.read_only_storage import open_to_read
from imgkeep.clock import read_clock
from imgkeep.cluster.nodes.upkeep import list_members
from imgkeep.core.records import Backlog
from imgkeep.images.placeholder_suspects import IDENTITIES_MIN, PERIOD_S
from imgkeep.images.record_json import as_dict, describe_record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence

    from imgkeep.cli.client import Client
    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.invocation import Invocation
    from imgkeep.cluster.nodes.upkeep import MemberFacts
    from imgkeep.core.records import Record
    from imgkeep.database import Database
    from imgkeep.images.record_json import ImageFacts

PAGE: Final = 500
"""Maximum number of images in one statement, or in one answer of the API."""


def run(invocation: Invocation) -> Command:
    return _run_list(invocation) if invocation.arguments.command == "list" else _run_stats(invocation)


async def _run_list(invocation: Invocation) -> int:
    arguments = invocation.arguments
    if arguments.server:
        images = images_on_server(make_client(invocation), limit=arguments.limit)
        return await list_images(images, as_json=arguments.json, out=sys.stdout)
    async with open_to_read(invocation.config) as storage:

        def describe(record: Record) -> ImageFacts:
            kind = "local" if record.pending else storage.store.name
            return describe_record(record, url=permanent_url(storage.remote, invocation.base, record), storage=kind)

        images = images_in_store(storage.database, describe, limit=arguments.limit)
        return await list_images(images, as_json=arguments.json, out=sys.stdout)


async def _run_stats(invocation: Invocation) -> int:
    async with open_to_read(invocation.config) as storage:
        return await stats(
            storage.database,
            now=read_clock(),
            picture_bytes=await storage.picture_cache.measure(),
            as_json=invocation.arguments.json,
            out=sys.stdout,
        )


async def images_in_store(
    database: Database, describe: Callable[[Record], ImageFacts], *, limit: int
) -> AsyncGenerator[Mapping[str, Any]]:
    """Yield what the API tells of each image, newest first, from the image index; up to `limit` of them, 0: all."""
    after: tuple[int, str] | None = None
    left = limit
    while page := await database.image_index.page(limit=min(left, PAGE) if limit else PAGE, after=after):
        for record in await database.picture_facts.add_to(page):
            yield as_dict(describe(record))
        left -= len(page)
        if limit and left <= 0:
            break
        after = (int(page[-1].stored_at.timestamp()), page[-1].key)


async def images_on_server(client: Client, *, limit: int) -> AsyncGenerator[Mapping[str, Any]]:
    """Yield the same from a running server."""
    cursor: dict[str, str] = {}
    left = limit
    async with client.session() as session:
        while True:
            query = {"limit": str(min(left, PAGE) if limit else PAGE), **cursor}
            answer = await client.call_api(session, "GET", "/api/images", params=query)
            for facts in answer["images"]:
                yield facts
            left -= len(answer["images"])
            if not answer["next"] or (limit and left <= 0):
                return
            cursor = {"cursor": answer["next"]}


async def list_images(images: AsyncIterable[Mapping[str, Any]], *, as_json: bool, out: TextIO) -> int:
    """Print images, a line for each."""
    async for facts in images:
        if as_json:
            print_json(out, facts)
            continue
        stored_at, source = facts["stored_at"], facts["source"]
        time = readable_time(stored_at) if isinstance(stored_at, datetime) else printable(str(stored_at))
        size = f"{facts['width']}x{facts['height']}" if facts["width"] else "-"
        out.write(
            f"{time}  {facts['key']}  {facts['content_type']:<13}  {size:>11}  {readable_bytes(facts['size']):>10}  "
            f"{printable(source['host'] or '-')}\n"
        )
    return 0


async def stats(database: Database, *, now: datetime, picture_bytes: int, as_json: bool, out: TextIO) -> int:
    """Print how much is stored, which images may be placeholders, and the size of the pictures on this disk."""
    image_index = database.image_index
    totals = await image_index.count()
    suspects = await image_index.suspects(since=now - timedelta(seconds=PERIOD_S), identities_min=IDENTITIES_MIN)
    backlogs, members = await database.outbox.backlogs(), await list_members(database.engine)
    backlog = _join(backlogs.values())
    nodes = describe_nodes(backlogs, members)
    facts: dict[str, object] = {
        "images": totals.images,
        "objects": totals.objects,
        "object_bytes": totals.object_bytes,
        "picture_bytes": picture_bytes,
        "estimated": totals.is_estimate,
        "oldest": totals.oldest,
        "newest": totals.newest,
        "image_index_complete": image_index.complete,
        "waiting": backlog.images,
        "waiting_since": backlog.oldest,
        "last_error": backlog.error,
        **({"nodes": nodes} if nodes else {}),
        "hosts": dict(totals.hosts),
        "suspects": [{"host": host, "digest": digest, "identities": number} for host, digest, number in suspects],
    }
    if as_json:
        print_json(out, facts)
        return 0
    facts["object_bytes"] = readable_bytes(totals.object_bytes)
    facts["picture_bytes"] = readable_bytes(picture_bytes)
    if nodes:
        facts["nodes"] = "; ".join(map(_tell_node, nodes))
    facts["hosts"] = ", ".join(f"{host or '-'} ({number})" for host, number in totals.hosts) or None
    facts["suspects"] = ", ".join(f"{digest} at {host} ({number})" for host, digest, number in suspects) or None
    print_facts(out, facts)
    return 0


def describe_nodes(backlogs: Mapping[str, Backlog], members: Sequence[MemberFacts]) -> list[dict[str, Any]]:
    """Return what waits on each node of a cluster, and its processes; nothing where there is one without a name."""
    names = sorted({*backlogs, *(member.node for member in members)} - {""})
    described = []
    for name in names:
        backlog = backlogs.get(name, Backlog())
        processes = [
            {"id": each.id, "version": each.version, "live": each.is_live, "heartbeat_s": round(each.heartbeat_s)}
            for each in members
            if each.node == name
        ]
        described.append(
            {
                "node": name,
                "waiting": backlog.images,
                "waiting_since": backlog.oldest,
                "last_error": backlog.error,
                "members": processes,
            }
        )
    return described


def _join(backlogs: Iterable[Backlog]) -> Backlog:
    """Return the backlog of all nodes together."""
    each = list(backlogs)
    oldest = min((backlog.oldest for backlog in each if backlog.oldest is not None), default=None)
    error = next((backlog.error for backlog in each if backlog.error is not None), None)
    return Backlog(sum(backlog.images for backlog in each), oldest, error)


def _tell_node(facts: Mapping[str, Any]) -> str:
    live = [member for member in facts["members"] if member["live"]]
    versions = ", ".join(sorted({member["version"] for member in live}))
    beat = min((member["heartbeat_s"] for member in live), default=0)
    state = f"{len(live)} live of {versions}, {beat} s ago" if live else "not live"
    waiting = f", {facts['waiting']} waiting since {readable_time(facts['waiting_since'])}" if facts["waiting"] else ""
    return f"{facts['node']} ({state}{waiting})"
