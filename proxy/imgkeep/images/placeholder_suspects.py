"""
Pictures that one host gives under many names: likely a placeholder for what is missing, forbidden or over a limit.

Rules:
- What counts is how many identities of one host had the same bytes within a day, each once.
- A suspicion is reported, and refused only where the operator says so (`sources.placeholders`); what is stored stays.
- Memory is bounded: what was not seen for longest is forgotten first. Each process counts what it fetches itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import shared_identity
from imgkeep.core.errors import NotAnImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Digest, Record

IDENTITIES_MIN: Final = 10
"""The same spacer or default avatar appears under some names on one site; a placeholder does under all."""
PERIOD_S: Final = 86_400
COUNTED_MAX: Final = 32_768
"""Pairs of host and digest that are being counted; 1 kB each at most, 32 MB, and a fifth of that as a rule."""
SUSPECTS_MAX: Final = 4096


class PlaceholderSuspects:
    """
    Counts under how many identities a host gives the same bytes.

    Args:
        refuse: Whether what is suspected is not kept any more.
        timer: Gives monotonic seconds.
    """

    def __init__(self, timer: Callable[[], float], *, refuse: bool = False) -> None:
        self._refuse = refuse
        self._timer = timer
        self._counted: LRUCache[tuple[str, Digest], tuple[float, set[int]]] = LRUCache(COUNTED_MAX)
        """Since when, and hashes of the identities."""
        self._suspects: TTLCache[tuple[str, Digest], bool] = TTLCache(SUSPECTS_MAX, PERIOD_S, timer=timer)

    def __len__(self) -> int:
        return len(self._suspects)

    def include(self, record: Record) -> bool:
        """Whether the bytes of a record are suspected at its host."""
        return (record.host, record.digest) in self._suspects

    def insist(self, record: Record) -> None:
        """
        Raise what forbids to keep the bytes of a record.

        Raises:
            NotAnImage: They are suspected, and that is refused.
        """
        if self._refuse and self.include(record):
            raise NotAnImage(
                "the origin gives the same picture for many links, so it is taken for a placeholder; "
                'sources.placeholders = "report" keeps such pictures'
            )

    def note(self, record: Record) -> bool:
        """Count a record that was kept; return whether its bytes are suspected from now on, and were not before."""
        place = (record.host, record.digest)
        if not record.host or place in self._suspects:
            return False
        now = self._timer()
        since, identities = self._counted.get(place, (now, set()))
        if now - since > PERIOD_S:
            since, identities = now, set()
        identities.add(hash(shared_identity(record.identity)))
        self._counted[place] = (since, identities)
        if len(identities) < IDENTITIES_MIN:
            return False
        del self._counted[place]
        self._suspects[place] = True
        return True
