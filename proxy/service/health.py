"""
How we are: what works, what does not and why, and whether new requests are welcome.

Nothing here is asked while a load balancer waits: a look is taken every few seconds, a failure that a fill meets is
noted at once, and the answer is read from memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.core.errors import StorageError

if TYPE_CHECKING:
    from proxy.ports import Watched

LOOK_EVERY_S: Final = 5
"""A load balancer asks about as often."""


@dataclass(slots=True)
class Health:
    """The parts, and the two states that concern all: not yet looked, and draining."""

    store: Watched
    catalog: Watched
    free_bytes_min: int
    draining: bool = False
    faults: dict[str, str | None] = field(default_factory=dict)
    free_bytes: int = 0

    async def look(self) -> None:
        """Take a look at every part. A fault ends here as soon as the part works again."""
        try:
            self.free_bytes = await self.store.check()
        except StorageError as fault:
            self.faults["store"] = str(fault)
        else:
            self.faults["store"] = None
            short = self.free_bytes < self.free_bytes_min
            self.faults["disk"] = "less than store.free_bytes_min is free" if short else None
        try:
            await self.catalog.check()
        except StorageError as fault:
            self.faults["catalog"] = str(fault)
        else:
            self.faults["catalog"] = None

    def note(self, part: str, fault: str) -> None:
        """Note a fault that was met at work. It stands until a look finds the part working."""
        self.faults[part] = fault

    def report(self) -> tuple[bool, dict[str, object]]:
        """
        Return whether to send requests here, and the state of every part.

        `degraded`: requests are answered, but new images may not be kept, or look-ups take longer.
        """
        if self.draining:
            status = "draining"
        elif not self.faults:
            status = "unready"
        else:
            status = "degraded" if any(self.faults.values()) else "ready"
        parts: dict[str, object] = {
            part: {"status": "failing", "reason": fault} if fault else {"status": "ok"}
            for part, fault in ((name, self.faults.get(name)) for name in ("store", "catalog", "disk"))
        }
        # A local store is its own fallback: there is nowhere else to go.
        parts["fallback"] = {"status": "unused"}
        return status in {"ready", "degraded"}, {"status": status, **parts}
