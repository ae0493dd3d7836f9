"""
Measure a cluster of three nodes: `python -m bench cluster [ROW...]`; or hurt one: `python -m bench cluster --chaos`.

Needs PostgreSQL (Debian: `apt-get install postgresql`), and what all rows need. `--chaos` needs root, for networks of
the nodes' own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench import chaos, cluster_rows, report
from bench.rows import Plan, tidy_up
from bench.servers import dump, find, versions

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench cluster", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(cluster_rows.ROWS)}; default: all")
    parser.add_argument("--chaos", action="store_true", help="kill nodes, stop the database and cut nodes off instead")
    parser.add_argument("--links", type=int, default=2000, help="of the jobs of --chaos")
    parser.add_argument("--outage-s", type=float, default=60, help="of the database, with --chaos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each round")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/imgkeep-bench").expanduser(), help="a folder")
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args(words)
    if arguments.chaos:
        return chaos.main(arguments.links, arguments.outage_s)
    unknown = [name for name in arguments.rows if name not in cluster_rows.ROWS]
    missing = [program for program in ("nginx", "wrk", "taskset") if find(program) is None]
    if unknown or missing:
        what = f"no row is called {unknown[0]}" if unknown else f"{' and '.join(missing)} not installed"
        print(f"{what}; rows: {', '.join(cluster_rows.ROWS)}", file=sys.stderr)
        return 2
    plan = Plan(arguments.work, arguments.rounds, arguments.seconds, records=0)
    results = []
    for name in arguments.rows or cluster_rows.ROWS:
        print(f"{name} ...", file=sys.stderr)
        results.append(cluster_rows.ROWS[name](plan))
    tidy_up(plan)
    told = versions(None)
    print(report.table(results))
    print(", ".join(f"{name} {version}" for name, version in told.items()))
    if arguments.json:
        dump({"versions": told, "rows": [asdict(row) for row in results]}, arguments.json)
    goals = [row for row in results if row.at_least is not None or row.invalid]
    return 0 if all(row.good for row in goals) else 1
