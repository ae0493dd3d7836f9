"""Record sharing: how the records that a process remembers stay those of the store, which others change too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.images.cache_trust import CacheTrust
    from imgkeep.images.interfaces import Notifier


async def _learn_nothing(_digests: Collection[Digest]) -> None:
    """Without a list of blocked digests there is nothing to add to."""


@dataclass(frozen=True, slots=True)
class RecordSharing:
    """
    How the records that a process remembers stay those of the store.

    Attributes:
        changed: Called with every key whose record has changed, or whose image has moved.
        all_changed: Called when every record may have changed.
        remembered: Called with every record that comes into memory.
        learn_blocked: Takes digests that the store has been found to block.
        notifier: The other processes; `None`: there are none.
        trust: Whether memory may answer without the store; `None`: always.
    """

    changed: Callable[[Key], None] = lambda _: None
    all_changed: Callable[[], None] = lambda: None
    remembered: Callable[[Record], None] = lambda _: None
    learn_blocked: Callable[[Collection[Digest]], Awaitable[None]] = _learn_nothing
    notifier: Notifier | None = None
    trust: CacheTrust | None = None
