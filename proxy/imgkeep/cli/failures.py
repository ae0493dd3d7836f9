"""`failures`: lists the recent failures of a running server, with their causes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.invocation import make_client
from imgkeep.cli.printing import print_json, printable

if TYPE_CHECKING:
    from imgkeep.cli.client import Client
    from imgkeep.cli.invocation import Invocation

LIMIT_MAX: Final = 500
"""Maximum number of failures: as many as the server remembers."""


async def run(invocation: Invocation) -> int:
    arguments = invocation.arguments
    return await list_failures(make_client(invocation), limit=arguments.limit, as_json=arguments.json, out=sys.stdout)


async def list_failures(client: Client, *, limit: int, as_json: bool, out: TextIO) -> int:
    """Print failures, a line for each, the latest first; up to `limit` of them, 0: all."""
    async with client.session() as session:
        query = {"limit": str(min(limit or LIMIT_MAX, LIMIT_MAX))}
        answer = await client.call_api(session, "GET", "/api/failures", params=query)
    for facts in answer["failures"]:
        if as_json:
            print_json(out, facts)
            continue
        times = "" if facts["count"] == 1 else f" ({facts['count']} times since {facts['first_at']})"
        provider = f" {facts['provider']}" if facts["provider"] else ""
        line = (
            f"{facts['last_at']}  {facts['code']}  {facts['host']}{provider}  {facts['detail']}{times}  {facts['key']}"
        )
        out.write(f"{printable(line)}\n")
    return 0
