"""`migrate`: copying one store to another, with a progress bar for people who watch."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, TextIO

from imgkeep.cli.printing import print_json
from imgkeep.cli.progress import progress
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import OBJECTS

if TYPE_CHECKING:
    from imgkeep.maintenance.migrate import CopyResult, Migration


async def migrate(migration: Migration, *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Copy, tell on `err` what could not be copied, and print a summary. 1 if there was something."""
    counts: Counter[str] = Counter()
    fault: StorageError | None = None
    try:
        with progress("copying", await migration.count(), err) as bar:
            async with aclosing(migration.run()) as results:
                async for result in results:
                    counts[_counted(result)] += 1
                    bar.advance(1)
                    if result.outcome in {"damaged", "failed"}:
                        bar.say(f"{result.outcome:<10}  {result.path}  {result.reason}")
    except StorageError as error:
        fault = error
    facts = {
        name: counts[name] for name in ("copied_objects", "copied_records", "skipped", "kept", "damaged", "failed")
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
