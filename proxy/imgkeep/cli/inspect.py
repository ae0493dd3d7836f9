"""`inspect`: what a URL names, and whether imgkeep may fetch it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.errors import ServerError
from imgkeep.cli.invocation import make_client, read_urls
from imgkeep.cli.printing import print_facts, print_json
from imgkeep.clock import read_clock
from imgkeep.core.errors import SourceRejected
from imgkeep.core.source_url import read_source
from imgkeep.images.inspect import make_inspector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from imgkeep.cli.client import Client
    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.invocation import Invocation
    from imgkeep.images.inspect import Inspector

UNREADABLE_CODES: Final = frozenset({"invalid_source", "source_forbidden"})
"""Problem codes by which the API refuses to read a link."""
NOTHING: Final = {
    "url": None,
    "identity": None,
    "key": None,
    "provider": None,
    "scheme": None,
    "temporary": False,
    "expires_at": None,
    "signature_checked": None,
    "ours": False,
    "allowed": False,
    "reason": None,
}
"""The facts of a URL that imgkeep cannot read."""


def run(invocation: Invocation) -> int | Command:
    arguments = invocation.arguments
    if arguments.server:
        client = make_client(invocation)
        return inspect_on_server(list(read_urls(arguments.urls)), client, as_json=arguments.json, out=sys.stdout)
    inspector = make_inspector(invocation.config, read_clock)
    return inspect(read_urls(arguments.urls), inspector, as_json=arguments.json, out=sys.stdout)


def inspect(urls: Iterable[str], inspector: Inspector, *, as_json: bool, out: TextIO) -> int:
    """Print what the policy and the provider rules tell of each URL. 1 if imgkeep cannot read one."""
    status = 0
    for url in urls:
        try:
            facts = {**inspector.inspect(read_source(url)), "url": url}
        except SourceRejected as error:
            facts = {**NOTHING, "url": url, "reason": str(error)}
            status = 1
        _print(facts, as_json=as_json, out=out)
    return status


async def inspect_on_server(urls: Iterable[str], client: Client, *, as_json: bool, out: TextIO) -> int:
    """Print what a running server tells of each URL. 1 if it cannot read one."""
    status = 0
    async with client.session() as session:
        for url in urls:
            answer = await client.request(session, "GET", "/api/inspect", params={"src": url})
            if answer.pop("success", False):
                facts = {**NOTHING, **answer, "url": url}
            elif answer.get("code") in UNREADABLE_CODES:
                facts = {**NOTHING, "url": url, "reason": answer.get("detail")}
                status = 1
            else:
                raise ServerError(f"the server says: {answer.get('detail', 'nothing')}")
            _print(facts, as_json=as_json, out=out)
    return status


def _print(facts: Mapping[str, object], *, as_json: bool, out: TextIO) -> None:
    if as_json:
        print_json(out, facts)
    else:
        print_facts(out, facts)
        out.write("\n")
