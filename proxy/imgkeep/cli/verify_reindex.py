"""`verify` and `reindex`: looking after what is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.printing import as_line, print_json
from imgkeep.cli.progress import progress
from imgkeep.maintenance import verify_reindex as upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.core.records import Record
    from imgkeep.database import ImageIndex
    from imgkeep.storage.interfaces import ListableStore

REMEDY: Final = (
    "Incomplete images are fetched again when they are asked for; `imgkeep refetch KEY` does so now. What comes back\n"
    "equal three times over a day is taken for all that its owner has.\n"
)


async def verify(
    archives: Sequence[ListableStore], image_index: ImageIndex, *, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """
    Read everything that is stored and print what is wrong. 1 if something is damaged or missing; what is incomplete is
    as it came.
    """
    counts: Counter[str] = Counter()
    with progress("verifying", None, err) as bar:
        for number, archive in enumerate(archives):

            async def note(record: Record, *, pending: bool = number > 0) -> None:
                await image_index.put(replace(record, pending=pending))

            async for finding in upkeep.verify(archive, note):
                counts[finding.kind if finding else "good"] += 1
                bar.advance(1)
                if finding is None:
                    continue
                key = {} if finding.key is None else {"key": finding.key}
                facts = {"kind": finding.kind, "path": finding.path, **key}
                bar.answer(out, as_line(facts) if as_json else f"{finding.kind:<10}  {finding.key or finding.path}")
    kinds = ("good", "damaged", "missing", "unreadable", "orphan", "incomplete")
    if as_json:
        print_json(out, {kind: counts[kind] for kind in kinds})
    else:
        out.write(", ".join(f"{counts[kind]} {kind}" for kind in kinds) + "\n")
        if counts["incomplete"]:
            out.write(REMEDY)
    return 1 if counts["damaged"] or counts["missing"] or counts["unreadable"] else 0


async def reindex(archives: Sequence[ListableStore], image_index: ImageIndex, *, as_json: bool, out: TextIO) -> int:
    """Fill the image index from the records."""
    images = await upkeep.reindex(archives, image_index)
    if as_json:
        print_json(out, {"images": images})
    else:
        out.write(f"{images} images\n")
    return 0
