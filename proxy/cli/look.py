"""`inspect` and `check`: what imgkeep reads from a URL, and from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from proxy.cli.printing import print_facts, print_json, readable_bytes
from proxy.core.errors import SourceRejected, StorageError
from proxy.core.source import read_source

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
"""Of what is no URL that we read."""

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from proxy.ports import Watched
    from proxy.service.inspect import Inspector


def inspect(urls: Iterable[str], inspector: Inspector, *, as_json: bool, out: TextIO) -> int:
    """Tell what each URL names and whether policy lets it be fetched, by the URL alone. 1 if one is not readable."""
    status = 0
    for url in urls:
        try:
            facts = {**inspector.inspect(read_source(url)), "url": url}
        except SourceRejected as error:
            facts = {**NOTHING, "url": url, "reason": str(error)}
            status = 1
        if as_json:
            print_json(out, facts)
        else:
            print_facts(out, facts)
            out.write("\n")
    return status


async def check(
    parts: Mapping[str, Watched],
    steps: AsyncIterator[tuple[str, str | None, str | None]] | None = None,
    *,
    place: str = "",
    out: TextIO,
) -> int:
    """
    Say that the configuration is valid, and put, read and delete a probe in each of `parts`.

    `steps` are what else is tried one after the other, at `place`: a name, and what is wrong and its remedy where
    something is.
    """
    out.write("configuration: valid\n")
    status = 0
    for name, part in parts.items():
        try:
            free = await part.check()
        except StorageError as fault:
            status = 1
            out.write(f"{name}: {fault.in_full}\n")
        else:
            out.write(f"{name}: works{f', {readable_bytes(free)} free' if free else ''}\n")
    if steps is not None:
        out.write(f"store: {place}\n")
        async for name, error, remedy in steps:
            if error is None:
                out.write(f"✓ {name}\n")
                continue
            status = 1
            out.write(f"✗ {name}: {error}\n" + (f"  remedy: {remedy}\n" if remedy else ""))
    return status
