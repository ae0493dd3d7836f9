"""
Suspected placeholders: bytes that a host sends under many names, likely for images that are missing, forbidden or over
a limit.

Rules:
- The measure is the number of identities of one host that had the same bytes within a day, each counted once.
- A suspicion is reported; fills of suspected bytes fail only if the operator configures it (`sources.placeholders`).
  Stored images stay.
- Memory is bounded: the least recently seen entry is forgotten first. Each process counts what it fetches itself.
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
"""Minimum number of identities that make bytes suspect: a spacer or default avatar has a few names on a site."""
PERIOD_S: Final = 86_400
COUNTED_MAX: Final = 32_768
"""Maximum number of pairs of host and digest that are counted; 1 kB each at most, 32 MB, a fifth of that as a rule."""
SUSPECTS_MAX: Final = 4096


class PlaceholderSuspects:
    """
    The number of identities under which a host sent the same bytes.

    Args:
        timer: Gives monotonic seconds.
        refuse: Whether suspected bytes are not stored.
    """

    def __init__(self, timer: Callable[[], float], *, refuse: bool = False) -> None:
        self._refuse = refuse
        self._timer = timer
        self._counted: LRUCache[tuple[str, Digest], tuple[float, set[int]]] = LRUCache(COUNTED_MAX)
        """By host and digest, the time of the first identity and the hashes of all."""
        self._suspects: TTLCache[tuple[str, Digest], bool] = TTLCache(SUSPECTS_MAX, PERIOD_S, timer=timer)

    def __len__(self) -> int:
        return len(self._suspects)

    def include(self, record: Record) -> bool:
        """Tell whether the bytes of a record are suspected at its host."""
        return (record.host, record.digest) in self._suspects

    def reject(self, record: Record) -> None:
        """
        Reject the bytes of a record where they are suspected and the operator wants them rejected.

        Raises:
            NotAnImage: They are.
        """
        if self._refuse and self.include(record):
            raise NotAnImage(
                "the origin sends the same image for many links, so it is taken for a placeholder; "
                'sources.placeholders = "report" stores such images'
            )

    def count(self, record: Record) -> bool:
        """Count a stored record; return whether its bytes are suspected from now on, and were not before."""
        pair = (record.host, record.digest)
        if not record.host or pair in self._suspects:
            return False
        now = self._timer()
        since, identities = self._counted.get(pair, (now, set()))
        if now - since > PERIOD_S:
            since, identities = now, set()
        identities.add(hash(shared_identity(record.identity)))
        self._counted[pair] = (since, identities)
        if len(identities) < IDENTITIES_MIN:
            return False
        del self._counted[pair]
        self._suspects[pair] = True
        return True
