"""`migrate`: copying one store to another, with a progress bar for people who watch."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, TextIO

from proxy.cli.printing import print_json
from proxy.core.errors import StorageError
from proxy.core.stored import OBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.service.migrate import Migration, Outcome


async def migrate(migration: Migration, *, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Copy, tell on `err` what could not be copied, and print a summary. 1 if there was something."""
    counts: Counter[str] = Counter()
    fault: StorageError | None = None
    with ExitStack() as stack:
        try:
            advance, say = _watch(stack, await migration.count(), err)
            async with aclosing(migration.run()) as outcomes:
                async for outcome in outcomes:
                    counts[_counted(outcome)] += 1
                    advance()
                    if outcome.fate in {"damaged", "failed"}:
                        say(f"{outcome.fate:<10}  {outcome.path}  {outcome.reason}")
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


def _counted(outcome: Outcome) -> str:
    if outcome.fate != "copied":
        return outcome.fate
    return "copied_objects" if outcome.path.startswith(OBJECTS) else "copied_records"


def _watch(stack: ExitStack, total: int, err: TextIO) -> tuple[Callable[[], None], Callable[[str], None]]:
    """Return what tells of one more, and what prints a line: beside a progress bar where somebody watches."""

    def write(line: str) -> None:
        err.write(f"{line}\n")

    if not err.isatty():
        return lambda: None, write
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that no other command need wait for
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(file=err)
    columns = (TextColumn("copying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = stack.enter_context(Progress(*columns, console=console))
    task = progress.add_task("", total=total)

    def print_above(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return lambda: progress.advance(task), print_above
