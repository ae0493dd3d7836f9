"""
A bound of the work on one document, counted and not timed, so that it is the same on every machine.

A step is one thing that is looked at closely: a tag, a comment, one look of the Markdown parser at one place. What is
read closely as a whole (a tag's attributes, a style sheet, JSON-LD) costs steps by its length. A step takes some
microseconds at most.
"""

from __future__ import annotations

from typing import Final

CHARS_PER_STEP: Final = 8
"""Of a text that is read closely: the shortest tokens of CSS, `srcset` and JSON come in about that many a step."""


class Budget:
    """
    Steps that may be taken.

    Args:
        steps_max: How many; `None`: any number.
    """

    __slots__ = ("_steps_max", "steps")

    def __init__(self, steps_max: int | None) -> None:
        self._steps_max = steps_max
        self.steps = 0

    @property
    def is_spent(self) -> bool:
        """Return whether more steps were taken than may be."""
        return self._steps_max is not None and self.steps > self._steps_max

    def spend(self, steps: int = 1) -> None:
        """Count steps."""
        self.steps += steps

    def spend_on(self, chars: int) -> None:
        """Count the steps of reading a text of so many characters closely."""
        self.steps += chars // CHARS_PER_STEP
