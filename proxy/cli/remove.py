"""`remove`: remove pictures for good, by key, link or digest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from proxy.core.errors import ImgkeepError, StorageError
from proxy.core.model import Digest, Key
from proxy.core.source import read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.core.model import Source, SourceInfo

_HASH: Final = re.compile("[0-9a-f]{64}")


class Remover(Protocol):
    """`service.removal.Remover`, as far as it is needed here."""

    async def remove_key(self, key: Key) -> bool: ...
    async def remove_source(self, info: SourceInfo) -> None: ...
    async def remove_digest(self, digest: Digest) -> None: ...


async def remove(  # noqa: PLR0913 - all but three by keyword
    names: Iterable[str],
    remover: Remover,
    identify: Callable[[Source], SourceInfo],
    *,
    by_digest: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """Remove what each name names: a key, a link or, `by_digest`, a digest. 1 if one could not be removed."""
    status = 0
    for name in names:
        try:
            told = await _remove(name, remover, identify, by_digest=by_digest)
        except StorageError:
            raise
        except ImgkeepError as error:
            told = str(error)
        if told:
            err.write(f"imgkeep: {told}\n")
            status = 1
        else:
            out.write("removed\n")
    return status


async def _remove(name: str, remover: Remover, identify: Callable[[Source], SourceInfo], *, by_digest: bool) -> str:
    """Return what is wrong, if something is."""
    if by_digest:
        if not _HASH.fullmatch(name):
            return "a digest has 64 lower-case hexadecimal digits"
        await remover.remove_digest(Digest(name))
    elif _HASH.fullmatch(name):
        if not await remover.remove_key(Key(name)):
            return f"no image is kept under the key {name}"
    else:
        await remover.remove_source(identify(read_source(name)))
    return ""
