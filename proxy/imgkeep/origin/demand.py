"""The demand behind a fetch, and the answer that an image has not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.records import OWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Client


class NotModified(Exception):
    """The answer to a conditional request that the image has not changed (RFC 9110, 15.4.5). It is no failure."""


def _nothing() -> None:
    """Take the place of a callback."""


class Demand:
    """
    The client that causes a fetch, and whether the fetch yields to others. The caller changes it while the fetch runs.

    Attributes:
        client: The client whose share of the slots the fetch takes.
        yields: Whether no client waits for the image. Such a fetch goes on while no other fetch waits for its slot.
        changed: A callback for changes of `yields`; the fetch sets it.
        refusal_size: Returns, by the status of an error, how much of its body `OriginError.refusal` takes.
    """

    __slots__ = ("changed", "client", "refusal_size", "yields")

    def __init__(
        self, client: Client = OWN, *, yields: bool = False, refusal_size: Callable[[int], int] = lambda _: 0
    ) -> None:
        self.client = client
        self.yields = yields
        self.refusal_size = refusal_size
        self.changed: Callable[[], None] = _nothing

    def set(self, *, yields: bool) -> None:
        if yields != self.yields:
            self.yields = yields
            self.changed()

    def unwatch(self) -> None:
        """Forget the callback, at the end of the fetch."""
        self.changed = _nothing
