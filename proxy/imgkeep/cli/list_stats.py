"""`list` and `stats`: what is stored, by the database."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TextIO

from imgkeep.cli.printing import print_facts, print_json, printable, readable_bytes, readable_time
from imgkeep.images.placeholder_suspects import IDENTITIES_MIN, PERIOD_S
from imgkeep.images.record_facts import as_dict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping

    from imgkeep.cli.client import Client
    from imgkeep.core.records import Record
    from imgkeep.database import Database, ImageIndex
    from imgkeep.images.record_facts import ImageFacts

PAGE: Final = 500


async def images_in_store(
    image_index: ImageIndex, describe: Callable[[Record], ImageFacts], *, limit: int
) -> AsyncGenerator[Mapping[str, Any]]:
    """Yield what the API tells of images, newest first, by the database itself; up to `limit` of them, 0: all."""
    after: tuple[int, str] | None = None
    left = limit
    while page := await image_index.page(limit=min(left, PAGE) if limit else PAGE, after=after):
        for record in page:
            yield as_dict(describe(record))
        left -= len(page)
        if limit and left <= 0:
            break
        after = (int(page[-1].stored_at.timestamp()), page[-1].key)


async def images_on_server(client: Client, *, limit: int) -> AsyncGenerator[Mapping[str, Any]]:
    """Do the same by a running server."""
    cursor: dict[str, str] = {}
    left = limit
    async with client.session() as session:
        while True:
            query = {"limit": str(min(left, PAGE) if limit else PAGE), **cursor}
            told = await client.call_api(session, "GET", "/api/images", params=query)
            for facts in told["images"]:
                yield facts
            left -= len(told["images"])
            if not told["next"] or (limit and left <= 0):
                return
            cursor = {"cursor": told["next"]}


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


async def stats(database: Database, *, now: datetime, as_json: bool, out: TextIO) -> int:
    """Print how much is stored, and what may be placeholders."""
    image_index = database.image_index
    totals = await image_index.count()
    suspects = await image_index.suspects(since=now - timedelta(seconds=PERIOD_S), identities_min=IDENTITIES_MIN)
    backlog = await database.outbox.backlog()
    facts: dict[str, object] = {
        "images": totals.images,
        "objects": totals.objects,
        "object_bytes": totals.object_bytes,
        "oldest": totals.oldest,
        "newest": totals.newest,
        "image_index_complete": image_index.complete,
        "waiting": backlog.images,
        "waiting_since": backlog.oldest,
        "last_error": backlog.error,
        "hosts": dict(totals.hosts),
        "suspects": [{"host": host, "digest": digest, "identities": number} for host, digest, number in suspects],
    }
    if as_json:
        print_json(out, facts)
        return 0
    facts["object_bytes"] = readable_bytes(totals.object_bytes)
    facts["hosts"] = ", ".join(f"{host} ({number})" for host, number in totals.hosts) or None
    facts["suspects"] = ", ".join(f"{digest} at {host} ({number})" for host, digest, number in suspects) or None
    print_facts(out, facts)
    return 0
