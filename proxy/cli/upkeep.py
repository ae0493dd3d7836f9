"""`verify` and `reindex`: looking after what is stored."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TextIO

from proxy.cli.printing import as_line, print_json
from proxy.cli.progress import progress
from proxy.service import upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ports import Archive, Ledger


async def verify(archives: Sequence[Archive], *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Read everything that is stored and print what is wrong. 1 if something is damaged or missing."""
    counts: Counter[str] = Counter()
    with progress("verifying", None, err) as bar:
        for archive in archives:
            async for finding in upkeep.verify(archive):
                counts[finding.kind if finding else "good"] += 1
                bar.advance(1)
                if finding is None:
                    continue
                facts = {"kind": finding.kind, "path": finding.path}
                bar.answer(out, as_line(facts) if as_json else f"{finding.kind:<10}  {finding.path}")
    kinds = ("good", "damaged", "missing", "unreadable", "orphan")
    if as_json:
        print_json(out, {kind: counts[kind] for kind in kinds})
    else:
        out.write(", ".join(f"{counts[kind]} {kind}" for kind in kinds) + "\n")
    return 1 if counts["damaged"] or counts["missing"] or counts["unreadable"] else 0


async def reindex(archives: Sequence[Archive], ledger: Ledger, *, as_json: bool, out: TextIO) -> int:
    """Fill the catalog from the records."""
    images = await upkeep.reindex(archives, ledger)
    if as_json:
        print_json(out, {"images": images})
    else:
        out.write(f"{images} images\n")
    return 0
