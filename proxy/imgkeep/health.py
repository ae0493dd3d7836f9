"""
The health of this process: the state of each part with the cause of a failure, and whether it accepts new requests.

`/readyz` waits for no part: `check` asks the parts every few seconds, a fill notes a failure at once, and the answer
comes from memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.errors import Busy, StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from imgkeep.clock import Clock
    from imgkeep.core.records import Backlog

CHECK_INTERVAL_S: Final = 5
"""Interval of the checks; a load balancer asks about as often."""


class Checkable(Protocol):
    """A part that can be checked: a store, the database."""

    async def check(self) -> int:
        """
        Check that it works; return the bytes that are free in it, 0 where that means nothing.

        Raises:
            StorageError: It does not work.
        """


@dataclass(frozen=True, slots=True)
class ClusterState:
    """
    The place of this process among those of all nodes.

    Attributes:
        fault: Why it is no member; `None`: it is one.
        facts: What clients with access see of it.
    """

    fault: str | None
    facts: Mapping[str, object]


@dataclass(slots=True)
class Health:
    """
    The health of the parts, and of the process as a whole: not checked yet, in service, replaced or draining.

    Attributes:
        disk: The local disk: the store itself, or what lies under the fallback and the cache of a remote one.
        database: The SQL database.
        free_bytes_min: Minimum of free bytes on the disk: with less, new images are not stored locally.
        clock: The time, for how long an image waits.
        store: A remote store; `None`: the disk is the store.
        outage: Returns why the remote store cannot be called; `None`: it can.
        backlog: Returns what waits for the remote store, as of the last look; `None`: there is no fallback.
        cluster: Returns the place of this process in its cluster; `None`: no other node can use the database.
        draining: Whether this process takes no new requests, and ends.
        replaced: Whether another worker replaces this one: clients may stay, but endless responses have to end.
        free_bytes: Bytes that are free on the disk, as of the last check.
    """

    disk: Checkable
    database: Checkable
    free_bytes_min: int
    clock: Clock
    store: Checkable | None = None
    outage: Callable[[], str | None] = lambda: None
    backlog: Callable[[], Backlog | None] | None = None
    cluster: Callable[[], ClusterState] | None = None
    draining: bool = field(default=False, init=False)
    replaced: bool = field(default=False, init=False)
    free_bytes: int = field(default=0, init=False)
    _faults: dict[str, str | None] = field(default_factory=dict, init=False)

    @property
    def ending(self) -> bool:
        """Whether this process is about to end."""
        return self.draining or self.replaced

    @property
    def faults(self) -> Mapping[str, str | None]:
        """Why each part fails; `None`: it works. Empty before the first check."""
        faults = dict(self._faults)
        if (outage := self.outage()) is not None:
            faults["store"] = outage
        if self._faults and self.cluster is not None:
            faults["cluster"] = self.cluster().fault
        return faults

    async def check(self) -> None:
        """Check every part, none behind another. A fault ends here as soon as its part works again."""
        checks = [self._check("store" if self.store is None else "fallback", self._check_disk)]
        if self.store is not None:
            checks.append(self._check("store", self.store.check))
        checks.append(self._check("database", self.database.check))
        await asyncio.gather(*checks)

    def note_fault(self, part: str, fault: str) -> None:
        """Note a fault that a request has met. It stands until a check finds the part working."""
        self._faults[part] = fault

    def oldest_waiting_s(self) -> float:
        """Return for how many seconds the oldest image of the outbox has waited, as of the last backlog."""
        backlog = None if self.backlog is None else self.backlog()
        if backlog is None or backlog.oldest is None:
            return 0
        return max(0, (self.clock() - backlog.oldest).total_seconds())

    def report(self, *, in_full: bool) -> tuple[bool, dict[str, object]]:
        """
        Return whether to send requests here, and the state of every part.

        In full the report has reasons, which name hosts, buckets and paths.

        `degraded`: requests are answered, but new images may not be stored or are stored in the fallback only, or
        lookups take longer.
        """
        faults = self.faults
        if self.draining:
            status = "draining"
        elif not faults:
            status = "unready"
        else:
            status = "degraded" if any(faults.values()) else "ready"
        parts = {name: _describe(faults.get(name)) for name in ("store", "database", "disk")}
        parts["fallback"] = self._describe_fallback(faults.get("fallback"))
        if self.cluster is not None:
            parts["cluster"] = {**_describe(faults.get("cluster")), **self.cluster().facts}
        if not in_full:
            parts = {name: {"status": part["status"]} for name, part in parts.items()}
        return status in {"ready", "degraded"}, {"status": status, **parts}

    def _describe_fallback(self, fault: str | None) -> dict[str, object]:
        if self.backlog is None:
            # A local store is its own fallback: there is nowhere else to go.
            return {"status": "unused"}
        backlog = self.backlog()
        if backlog is None:
            return {**_describe(fault), "waiting": None, "oldest_s": None, "last_error": None}
        waiting = {"waiting": backlog.images, "oldest_s": round(self.oldest_waiting_s()), "last_error": backlog.error}
        return {**_describe(fault), **waiting}

    async def _check_disk(self) -> int:
        self.free_bytes = await self.disk.check()
        short = self.free_bytes < self.free_bytes_min
        self._faults["disk"] = "less than store.free_bytes_min is free" if short else None
        return self.free_bytes

    async def _check(self, part: str, check: Callable[[], Awaitable[int]]) -> None:
        try:
            await check()
        except StorageError as fault:
            # The circuit breaker's fault ends with the outage, and not at the next check only.
            is_outage = part == "store" and self.outage() is not None
            self._faults[part] = None if is_outage else fault.in_full
        except Busy:
            self._faults.setdefault(part, None)  # so many requests are no fault of the part; the next check tells
        else:
            self._faults[part] = None


def _describe(fault: str | None) -> dict[str, object]:
    return {"status": "failing", "reason": fault} if fault else {"status": "ok"}
