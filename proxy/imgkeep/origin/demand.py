"""What a fetch is asked with besides the source, and the answer that an image has not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.records import OWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Client


class NotModified(Exception):
    """An answer to who asked with a validator, and no failure: the image is what it was (RFC 9110, 15.4.5)."""


def _nothing() -> None:
    """Tell no one."""


class Demand:
    """
    Who causes a fetch, and whether it may be stopped for others. The caller changes it while the fetch runs.

    Attributes:
        client: Whose share of the places the fetch takes.
        yields: Whether no client waits for what it brings. Such a fetch goes on as long as it keeps no other waiting.
        changed: Is called when `yields` has changed; the fetch sets it.
        refusal_size: Tells by the status of an error how much of its body is wanted in `OriginError.refusal`.
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
        """The fetch is over."""
        self.changed = _nothing
