"""A progress bar for people who watch; nothing for anybody else."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@dataclass(frozen=True, slots=True)
class Bar:
    """What a command tells of its progress."""

    advance: Callable[[int], None]
    note: Callable[[str], None]
    """Shows a few words beside the bar."""
    say: Callable[[str], None]
    """Prints a line that stays."""


@contextmanager
def progress(words: str, total: int | None, err: TextIO) -> Generator[Bar]:
    """Show a bar on `err` until the end of the block, if that is a terminal."""

    def write(line: str) -> None:
        err.write(f"{line}\n")

    if not err.isatty():
        yield Bar(lambda _: None, lambda _: None, write)
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that no other command need wait for
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(file=err)
    columns = (
        TextColumn(words),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=total, rate="", note="")

        def advance(number: int) -> None:
            speed = shown.tasks[0].speed
            shown.update(task, advance=number, rate="" if speed is None else f"{speed:.1f}/s")

        yield Bar(
            advance,
            lambda text: shown.update(task, note=text),
            lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )
