"""
How we are: what works, what does not and why, and whether new requests are welcome.

Nothing here is asked while a load balancer waits: a look is taken every few seconds, a failure that a fill meets is
noted at once, and the answer is read from memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


CHECK_INTERVAL_S: Final = 5
"""A load balancer asks about as often."""


class Watched(Protocol):
    """A part whose health is watched."""

    async def check(self) -> int:
        """
        Try whether it works; return the bytes that are free in it, 0 where that means nothing.

        Raises:
            StorageError: It does not work.
        """


@dataclass(slots=True)
class Health:
    """
    The parts, and the two states that concern all: not yet looked, and draining.

    Attributes:
        disk: The local disk: the store itself, or what lies under the fallback and the cache of a remote one.
        store: A remote store; `None`: the disk is the store.
        leaving: Another worker takes our place. Nobody needs to look elsewhere, but what does not end by itself has to.
        fallback: What is told of the fallback besides its fault; `None`: there is none.
    """

    disk: Watched
    database: Watched
    free_bytes_min: int
    store: Watched | None = None
    fallback: Callable[[], dict[str, object]] | None = None
    draining: bool = False
    leaving: bool = False
    faults: dict[str, str | None] = field(default_factory=dict)
    free_bytes: int = 0

    @property
    def ending(self) -> bool:
        """Whether this process is about to end."""
        return self.draining or self.leaving

    async def look(self) -> None:
        """Take a look at every part. A fault ends here as soon as the part works again."""
        await self._look_at("store" if self.store is None else "fallback", self._check_disk)
        if self.store is not None:
            await self._look_at("store", self.store.check)
        await self._look_at("database", self.database.check)

    def note(self, part: str, fault: str) -> None:
        """Note a fault that was met at work. It stands until a look finds the part working."""
        self.faults[part] = fault

    def report(self, *, in_full: bool) -> tuple[bool, dict[str, object]]:
        """
        Return whether to send requests here, and the state of every part.

        In full, with what is told besides: reasons name hosts, buckets and paths.

        `degraded`: requests are answered, but new images may not be kept or are kept in the fallback only, or look-ups
        take longer.
        """
        if self.draining:
            status = "draining"
        elif not self.faults:
            status = "unready"
        else:
            status = "degraded" if any(self.faults.values()) else "ready"
        parts: dict[str, dict[str, object]] = {
            part: {"status": "failing", "reason": fault} if fault else {"status": "ok"}
            for part, fault in ((name, self.faults.get(name)) for name in ("store", "database", "disk"))
        }
        parts["fallback"] = self._tell_fallback()
        if not in_full:
            parts = {name: {"status": part["status"]} for name, part in parts.items()}
        return status in {"ready", "degraded"}, {"status": status, **parts}

    def _tell_fallback(self) -> dict[str, object]:
        if self.fallback is None:
            # A local store is its own fallback: there is nowhere else to go.
            return {"status": "unused"}
        fault = self.faults.get("fallback")
        told = {"status": "failing", "reason": fault} if fault else {"status": "ok"}
        return {**told, **self.fallback()}

    async def _check_disk(self) -> int:
        self.free_bytes = await self.disk.check()
        short = self.free_bytes < self.free_bytes_min
        self.faults["disk"] = "less than store.free_bytes_min is free" if short else None
        return self.free_bytes

    async def _look_at(self, part: str, check: Callable[[], Awaitable[int]]) -> None:
        try:
            await check()
        except StorageError as fault:
            self.faults[part] = fault.in_full
        else:
            self.faults[part] = None
