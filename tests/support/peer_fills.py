"""Fills of a worker that peers follow, without an image service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgkeep.core.records import Format
from imgkeep.images.fill import FillHead

if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractAsyncContextManager

    from imgkeep.images.peer_fill import FillFailure, RemoteFill
    from imgkeep.storage.interfaces import Body


@dataclass
class FakeBody:
    """A body that has come so far, and then ends, fails, or goes on when it is told to."""

    data: bytes
    error: Exception | None = None
    more: asyncio.Event | None = None
    size: int | None = None
    is_closed: bool = False

    async def read(self, offset: int, size: int) -> bytes:
        if offset >= len(self.data) and self.more is not None:
            await self.more.wait()
        if offset >= len(self.data) and self.error is not None:
            raise self.error
        return self.data[offset : offset + size]

    async def wait_for_size(self) -> int:
        return len(self.data) if self.size is None else self.size

    async def aclose(self) -> None:
        self.is_closed = True


@dataclass
class FakeImages:
    """The fills of a worker, by their names."""

    fills: dict[str, tuple[FakeBody, FillHead] | FillFailure] = field(default_factory=dict)
    waited_for: list[str] = field(default_factory=list)

    async def join_for_peer(self, name: str) -> tuple[FakeBody, FillHead] | FillFailure | None:
        return self.fills.get(name)

    async def wait_for_fill(self, key: str) -> None:
        self.waited_for.append(key)


async def read_body(body: Body) -> bytes:
    """Read a body to its end."""
    data = b""
    while piece := await body.read(len(data), 65_536):
        data += piece
    return data


def make_head(size: int | None = None) -> FillHead:
    return FillHead(Format.PNG, size, '"etag"', storing=True, doubts=frozenset())


class NoPeers:
    """The peers of the only worker."""

    def follow(self, holder: str, name: str) -> AbstractAsyncContextManager[RemoteFill | FillFailure | None]:
        raise AssertionError(f"{holder} has no lease on {name}")

    async def wait(self, holder: str, key: str) -> None:
        raise AssertionError(f"{holder} has no lease on {key}")
