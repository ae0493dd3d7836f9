"""`list` and `stats`: what is stored, by the catalog."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from proxy.cli.printing import print_facts, print_json, readable_bytes
from proxy.core.standing import standing_of
from proxy.core.stored import write_doubts
from proxy.service.suspects import IDENTITIES_MIN, PERIOD_S

if TYPE_CHECKING:
    from datetime import datetime

    from proxy.core.model import Record
    from proxy.ports import Ledger

PAGE: int = 500


async def list_images(ledger: Ledger, *, limit: int, as_json: bool, out: TextIO) -> int:
    """Print up to `limit` images, newest first; 0: all."""
    after: tuple[int, str] | None = None
    left = limit
    while page := await ledger.page(limit=min(left, PAGE) if limit else PAGE, after=after):
        for record in page:
            if as_json:
                print_json(out, _facts(record))
            else:
                size = f"{record.pixel_size.width}x{record.pixel_size.height}" if record.pixel_size else "-"
                out.write(
                    f"{record.stored_at:%Y-%m-%dT%H:%M:%SZ}  {record.key}  {record.format.extension:<4}  "
                    f"{size:>11}  {readable_bytes(record.size):>10}  {record.host}\n"
                )
        left -= len(page)
        if limit and left <= 0:
            break
        after = (int(page[-1].stored_at.timestamp()), page[-1].key)
    return 0


async def stats(ledger: Ledger, *, complete: bool, now: datetime, as_json: bool, out: TextIO) -> int:
    """Print how much is stored, and what may be placeholders."""
    totals = await ledger.count()
    suspects = await ledger.suspects(since=now - timedelta(seconds=PERIOD_S), identities_min=IDENTITIES_MIN)
    backlog = await ledger.backlog()
    facts: dict[str, object] = {
        "images": totals.images,
        "objects": totals.objects,
        "object_bytes": totals.object_bytes,
        "oldest": totals.oldest,
        "newest": totals.newest,
        "catalog_complete": complete,
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


def _facts(record: Record) -> dict[str, object]:
    return {
        "key": record.key,
        "digest": record.digest,
        "content_type": record.format.media_type,
        "size": record.size,
        "width": record.pixel_size.width if record.pixel_size else None,
        "height": record.pixel_size.height if record.pixel_size else None,
        "stored_at": record.stored_at,
        "standing": standing_of(record).value,
        "doubts": write_doubts(record.doubts),
        "host": record.host,
        "provider": record.provider,
        "temporary": record.temporary,
        "expires_at": record.expires_at,
        "path": f"/images/{record.object_name}",
    }
