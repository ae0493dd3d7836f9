"""What the rows came to: a table for people, one for the documentation, JSON, and a picture."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.rows import Row

HEADINGS = ("row", "unit", "imgkeep", "nginx", "thumbor", "ratio", "spread", "goal", "verdict", "notes")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text. The ratio is imgkeep's to nginx, the spread that of imgkeep's rounds, least to most."""
    medians = [_figure(statistics.median(each)) if each else "" for each in (row.ours, row.theirs, row.thumbors)]
    spread = f"{_figure(min(row.ours))} to {_figure(max(row.ours))}" if len(row.ours) > 1 else ""
    goal = ""
    if row.at_least is not None:
        goal = f"at least {row.at_least}, aim {row.aim}"
    elif row.at_most is not None:
        goal = f"at most {row.at_most:g}"
    verdict = f"INVALID: {row.invalid}" if row.invalid else ("reached" if row.good else "MISSED") if goal else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return row.name, row.unit, *medians, ratio, spread, goal, verdict, "; ".join(row.notes)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def table(rows: Sequence[Row]) -> str:
    """Return a table for a terminal."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """Return a table for the documentation, and what it was measured with."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nMeasured with {made_with}.\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the ratios. Needs matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - of the group `bench`, which a table does not need

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    compared = [row for row in rows if row.ratio is not None and row.at_least is not None]
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(compared) + 1.5))
    axes.barh([row.name for row in compared], [row.ratio or 0 for row in compared], color="#4477aa", label="imgkeep")
    for place, row in enumerate(compared):
        axes.plot([row.at_least] * 2, [place - 0.4, place + 0.4], color="#cc3311")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("imgkeep / nginx proxy_cache (red: the goal)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
