"""
Compare imgkeep with nginx, and with thumbor where there is one: `python -m bench [ROW...]`; or with Chromium, over
folders of images: `python -m bench sweep FOLDER...`; or the origin client with a rival:
`python -m bench origin-client`; or a node of a cluster with a single one: `python -m bench cluster`; or derived
pictures with thumbor and vipsthumbnail: `python -m bench derive`.

Needs nginx and wrk (Debian: `apt-get install nginx-light wrk`) and installs nothing; thumbor (PyPI) may live in an
environment of its own. Exit status 1: a row was missed or does not count; 2: something is not installed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from bench import bucket_rows, cluster, derive, origin_client, picture_rows, report, rows, sweep
from bench.rows import Plan, tidy_up
from bench.servers import dump, find, versions

ROWS = {**rows.ROWS, **bucket_rows.ROWS, **picture_rows.ROWS}


def main() -> int:
    if sys.argv[1:2] == ["sweep"]:
        return sweep.main(sys.argv[2:])
    if sys.argv[1:2] == ["origin-client"]:
        return origin_client.main(sys.argv[2:])
    if sys.argv[1:2] == ["cluster"]:
        return cluster.main(sys.argv[2:])
    if sys.argv[1:2] == ["derive"]:
        return derive.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each round")
    parser.add_argument("--records", type=int, default=1_000_000, help="of the rows start and size")
    parser.add_argument("--thumbor", metavar="PATH", help="that program; default: the one on PATH, or none")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/imgkeep-bench").expanduser(), help="a folder")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--plot", type=Path, help="draw the ratios there, as PNG; needs matplotlib")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    needed = ["nginx", "wrk", "taskset", *filter(None, [arguments.thumbor])]
    missing = [program for program in needed if find(program) is None]
    if unknown or missing:
        what = f"no row is called {unknown[0]}" if unknown else f"{' and '.join(missing)} not installed"
        print(f"{what}; rows: {', '.join(ROWS)}; Debian: apt-get install nginx-light wrk", file=sys.stderr)
        return 2
    thumbor = find(arguments.thumbor or "thumbor")
    plan = Plan(arguments.work, arguments.rounds, arguments.seconds, arguments.records, thumbor)
    results = []
    for name in arguments.rows or ROWS:
        print(f"{name} ...", file=sys.stderr)
        results.append(ROWS[name](plan))
    tidy_up(plan)
    told = versions(thumbor)
    print(report.table(results))
    print(", ".join(f"{name} {version}" for name, version in told.items()))
    if arguments.json:
        dump({"versions": told, "rows": [asdict(row) for row in results]}, arguments.json)
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(results, told))
    if arguments.plot:
        report.plot(results, arguments.plot)
    goals = [row for row in results if row.at_least is not None or row.at_most is not None or row.invalid]
    return 0 if all(row.good for row in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
