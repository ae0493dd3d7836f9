"""
A limit on the work for one document, counted and not timed, so that it is the same on every machine.

A step is one item that a parser reads closely: a tag, a comment, one position in Markdown. An item that it reads
closely as a whole (a tag's attributes, a style sheet, JSON-LD) costs steps by its length. A step takes some
microseconds at most.
"""

from __future__ import annotations

from typing import Final

CHARS_PER_STEP: Final = 8
"""Number of characters per step: about the length of the shortest tokens of CSS, `srcset` and JSON."""


class Budget:
    """
    A counter of steps with a limit.

    Args:
        steps_max: Maximum number of steps; `None`: any.
    """

    __slots__ = ("_steps_max", "steps")

    def __init__(self, steps_max: int | None) -> None:
        self._steps_max = steps_max
        self.steps = 0

    @property
    def is_spent(self) -> bool:
        """Return whether the steps exceed the limit."""
        return self._steps_max is not None and self.steps > self._steps_max

    def spend(self, steps: int = 1) -> None:
        """Count steps."""
        self.steps += steps

    def spend_on(self, chars: int) -> None:
        """Count the steps for a text of `chars` characters."""
        self.steps += chars // CHARS_PER_STEP
