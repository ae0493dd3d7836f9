"""
Division of the limits per client: a limit holds for all processes of a server together, whichever of them a client
reaches.

Rules:
- A bucket keeps the size and the rate of the whole limit, and each use costs as many tokens as there are processes. So
  a bucket is as full as before when their number changes.
- A use never costs more than a full bucket: each process admits at least one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LimitShare:
    """
    The part of this process in the limits per client.

    Attributes:
        members: Number of processes that share the limits: the workers, or the live members of the cluster.
    """

    members: int = 1

    def set_members(self, members: int) -> None:
        """Divide the limits by another number of processes from now on; this process is one of them."""
        self.members = max(1, members)

    def cost_of_one(self, limit: int) -> int:
        """Return how many tokens of a bucket of this size one use takes."""
        return min(self.members, limit)

    def part_of(self, limit: int) -> int:
        """Return how many of a number of simultaneous uses this process may admit."""
        return max(1, limit // self.members)
