"""`inspect` and `check`: what imgkeep reads from a URL, and from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from proxy.cli.printing import print_facts, print_json, readable_bytes
from proxy.core.errors import SourceRejected, StorageError
from proxy.core.identity import identify
from proxy.core.policy import judge
from proxy.core.source import read_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from proxy.core.policy import Policy
    from proxy.ports import Watched


def inspect(urls: Iterable[str], policy: Policy, now: datetime, *, as_json: bool, out: TextIO) -> int:
    """Tell what each URL names and whether policy lets it be fetched, by the URL alone. 1 if one is not readable."""
    status = 0
    for url in urls:
        facts, readable = _inspect(url, policy, now)
        status = status if readable else 1
        if as_json:
            print_json(out, facts)
        else:
            print_facts(out, facts)
            out.write("\n")
    return status


def _inspect(url: str, policy: Policy, now: datetime) -> tuple[dict[str, object], bool]:
    facts: dict[str, object] = dict.fromkeys(("url", "identity", "key", "provider", "temporary", "expires_at"))
    facts["url"] = url
    try:
        source = read_source(url)
    except SourceRejected as error:
        return {**facts, "allowed": False, "reason": str(error)}, False
    info = identify(source, now)
    reason = judge(source, policy)
    facts |= {
        "identity": info.identity,
        "key": info.key,
        "provider": info.provider,
        "temporary": info.temporary,
        "expires_at": info.expires_at,
    }
    return {**facts, "allowed": reason is None, "reason": reason}, True


async def check(parts: Mapping[str, Watched], *, out: TextIO) -> int:
    """Say that the configuration is valid, and put, read and delete a probe in each of `parts`."""
    out.write("configuration: valid\n")
    status = 0
    for name, part in parts.items():
        try:
            free = await part.check()
        except StorageError as fault:
            status = 1
            out.write(f"{name}: {fault}\n")
        else:
            out.write(f"{name}: works{f', {readable_bytes(free)} free' if free else ''}\n")
    return status
