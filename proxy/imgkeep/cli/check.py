"""`inspect` and `check`: what imgkeep reads from a URL, and from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.errors import ServerError
from imgkeep.cli.printing import print_facts, print_json, readable_bytes
from imgkeep.core.errors import SourceRejected, StorageError
from imgkeep.core.source_url import read_source

UNREADABLE_CODES: Final = frozenset({"invalid_source", "source_forbidden"})
"""Codes by which the API says that it does not read a link."""
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

    from imgkeep.cli.client import Client
    from imgkeep.health import Checkable
    from imgkeep.images.inspect import Inspector


def inspect(urls: Iterable[str], inspector: Inspector, *, as_json: bool, out: TextIO) -> int:
    """Tell what each URL names and whether policy lets it be fetched, by the URL alone. 1 if one is not readable."""
    status = 0
    for url in urls:
        try:
            facts = {**inspector.inspect(read_source(url)), "url": url}
        except SourceRejected as error:
            facts = {**NOTHING, "url": url, "reason": str(error)}
            status = 1
        _show(facts, as_json=as_json, out=out)
    return status


async def inspect_on_server(urls: Iterable[str], client: Client, *, as_json: bool, out: TextIO) -> int:
    """Do the same by what a running server knows and allows."""
    status = 0
    async with client.session() as session:
        for url in urls:
            told = await client.ask(session, "GET", "/api/inspect", params={"src": url})
            if told.pop("success", False):
                facts = {**NOTHING, **told, "url": url}
            elif told.get("code") in UNREADABLE_CODES:
                facts = {**NOTHING, "url": url, "reason": told.get("detail")}
                status = 1
            else:
                raise ServerError(f"the server says: {told.get('detail', 'nothing')}")
            _show(facts, as_json=as_json, out=out)
    return status


def _show(facts: Mapping[str, object], *, as_json: bool, out: TextIO) -> None:
    if as_json:
        print_json(out, facts)
    else:
        print_facts(out, facts)
        out.write("\n")


async def check(
    parts: Mapping[str, Checkable],
    steps: AsyncIterator[tuple[str, str | None, str | None]] | None = None,
    *,
    as_json: bool,
    place: str = "",
    out: TextIO,
) -> int:
    """
    Say that the configuration is valid, and put, read and delete a probe in each of `parts`.

    `steps` are what else is tried one after the other, at `place`: a name, and what is wrong and its remedy where
    something is.
    """

    def tell(part: str, words: str, error: str | None = None, remedy: str | None = None, **facts: object) -> None:
        if as_json:
            print_json(out, {"part": part, "works": error is None, "error": error, "remedy": remedy, **facts})
        else:
            out.write(f"{words}\n")

    tell("configuration", "configuration: valid")
    status = 0
    for name, part in parts.items():
        try:
            free = await part.check()
        except StorageError as fault:
            status = 1
            tell(name, f"{name}: {fault.in_full}", fault.in_full)
        else:
            tell(name, f"{name}: works{f', {readable_bytes(free)} free' if free else ''}", free_bytes=free or None)
    if steps is not None:
        tell("store", f"store: {place}", place=place)
        async for name, error, remedy in steps:
            if error is None:
                tell(name, f"✓ {name}")
                continue
            status = 1
            tell(name, f"✗ {name}: {error}" + (f"\n  remedy: {remedy}" if remedy else ""), error, remedy)
    return status
