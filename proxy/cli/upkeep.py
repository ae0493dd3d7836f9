"""`verify` and `reindex`: looking after what is stored."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TextIO

from proxy.cli.printing import print_json
from proxy.service import upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ports import Archive, Ledger


async def verify(archives: Sequence[Archive], *, as_json: bool, out: TextIO) -> int:
    """Read everything that is stored and print what is wrong. 1 if something is damaged or missing."""
    counts: Counter[str] = Counter()
    for archive in archives:
        async for finding in upkeep.verify(archive):
            counts[finding.kind if finding else "good"] += 1
            if finding is None:
                continue
            if as_json:
                print_json(out, {"kind": finding.kind, "path": finding.path})
            else:
                out.write(f"{finding.kind:<10}  {finding.path}\n")
    kinds = ("good", "damaged", "missing", "unreadable", "orphan")
    if as_json:
        print_json(out, {kind: counts[kind] for kind in kinds})
    else:
        out.write(", ".join(f"{counts[kind]} {kind}" for kind in kinds) + "\n")
    return 1 if counts["damaged"] or counts["missing"] or counts["unreadable"] else 0


async def reindex(archives: Sequence[Archive], ledger: Ledger, *, out: TextIO) -> int:
    """Fill the catalog from the records."""
    out.write(f"{await upkeep.reindex(archives, ledger)} images\n")
    return 0
