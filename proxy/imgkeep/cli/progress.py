"""
A progress bar on a terminal, and nothing elsewhere.

Lines that stay are printed above the bar: messages, log records and, if standard output is the same terminal, answers.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@dataclass(frozen=True, slots=True)
class Bar:
    """The means of a command to report its progress."""

    advance: Callable[[int], None]
    note: Callable[[str], None]
    """Show a few words beside the bar."""
    say: Callable[[str], None]
    """Print a line that stays."""
    answer: Callable[[TextIO, str], None]
    """Print a line to standard output; above the bar, if that is its terminal."""


@contextmanager
def progress(words: str, total: int | None, err: TextIO) -> Generator[Bar]:
    """Show a bar until the end of the block, if `err` is a terminal."""

    def write(line: str) -> None:
        err.write(f"{line}\n")

    def answer(out: TextIO, line: str) -> None:
        out.write(f"{line}\n")
        out.flush()

    if not err.isatty():
        yield Bar(lambda _: None, lambda _: None, write, answer)
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second, for terminals alone
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

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

        def answer_above(out: TextIO, line: str) -> None:
            if _are_one_terminal(out, err):
                say(line)
            else:
                answer(out, line)

        yield Bar(advance, lambda text: shown.update(task, note=text), say, answer_above)


def _are_one_terminal(out: TextIO, err: TextIO) -> bool:
    with suppress(OSError, ValueError):  # not every stream has a descriptor
        return out.isatty() and os.fstat(out.fileno()).st_rdev == os.fstat(err.fileno()).st_rdev
    return False
