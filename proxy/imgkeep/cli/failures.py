"""`failures`: what failed lately at a running server, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.printing import print_json, printable

if TYPE_CHECKING:
    from imgkeep.cli.client import Client

LIMIT_MAX: Final = 500
"""As many as the server remembers."""


async def list_failures(client: Client, *, limit: int, as_json: bool, out: TextIO) -> int:
    """Print failures, a line for each, the last to fail first; `limit` of them, 0: all that there are."""
    async with client.session() as session:
        query = {"limit": str(min(limit or LIMIT_MAX, LIMIT_MAX))}
        told = await client.call_api(session, "GET", "/api/failures", params=query)
    for facts in told["failures"]:
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
