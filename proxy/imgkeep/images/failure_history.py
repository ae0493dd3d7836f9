"""
Failure history: the recent failures of fills with their causes, for an operator without the log.

Rules:
- An entry holds the key, host, provider and detail of a failure, and never a link.
- Failures of one key with one code are one entry with a count, so a page that shows a dead link again and again
  displaces no others.
- The memory is bounded and each host has a share of it, so links that a client invents for one host displace no
  entries of other hosts. Links that the policy refuses have one share together: they may name any host.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.core.errors import ImgkeepError, Yielded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imgkeep.clock import Clock
    from imgkeep.core.records import Subject

ENTRIES_MAX: Final = 500
"""Maximum number of entries: half a megabyte, and more than a person reads."""
PER_HOST_MAX: Final = 100
"""Maximum number of entries of one host."""
POLICY_SHARE: Final = "refused by the policy"
"""The share of links that the policy refuses; no host has a space in its name."""
DETAIL_CHARS_MAX: Final = 300
"""Maximum number of characters of a detail."""


class RecentFailure(msgspec.Struct, frozen=True, kw_only=True):
    """
    Failures of one key for one cause.

    Attributes:
        key: The key of the image.
        host: The host of the link.
        provider: The service behind the link, where the provider rules know it.
        code: The code of the problem, as clients see it.
        detail: The description of the failure, for people.
        origin_status: The status that the origin answered, if it did.
        count: The number of failures since `first_at`.
    """

    key: str
    host: str
    provider: str | None
    code: str
    detail: str
    origin_status: int | None
    count: int
    first_at: datetime
    last_at: datetime


class RecentFailures:
    """A bounded memory of failures. One per process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], RecentFailure] = OrderedDict()
        """By key and code, in the order of their last failure."""
        self._shares: dict[tuple[str, str], str] = {}
        self._used: Counter[str] = Counter()

    def note(self, subject: Subject, error: BaseException, *, share: str | None = None) -> None:
        """Note that a fill has failed, or was refused before it began. `share`: where it counts; as a rule the host."""
        if isinstance(error, Yielded):  # it stopped for another fill; nothing failed
            return
        known_error = isinstance(error, ImgkeepError)
        code = error.code if isinstance(error, ImgkeepError) else "internal_error"
        now = self._clock().replace(microsecond=0)
        entry_id, share = (subject.key, code), share or subject.host
        before = self._pop(entry_id)
        self._make_room(share)
        self._entries[entry_id] = RecentFailure(
            key=subject.key,
            host=subject.host,
            provider=subject.provider,
            code=code,
            detail=str(error)[:DETAIL_CHARS_MAX] if known_error else "the server had an internal error",
            origin_status=getattr(error, "origin_status", None),
            count=1 if before is None else before.count + 1,
            first_at=now if before is None else before.first_at,
            last_at=now,
        )
        self._shares[entry_id] = share
        self._used[share] += 1

    def list(self) -> list[RecentFailure]:
        """Return all entries, the latest failure first."""
        return list(reversed(self._entries.values()))

    def _make_room(self, share: str) -> None:
        if self._used[share] >= PER_HOST_MAX:
            self._pop(next(each for each in self._entries if self._shares[each] == share))
        elif len(self._entries) >= ENTRIES_MAX:
            self._pop(next(iter(self._entries)))

    def _pop(self, entry_id: tuple[str, str]) -> RecentFailure | None:
        entry = self._entries.pop(entry_id, None)
        if entry is not None:
            share = self._shares.pop(entry_id)
            self._used[share] -= 1
            if not self._used[share]:
                del self._used[share]
        return entry


def merge_failures(parts: Iterable[Sequence[RecentFailure]], limit: int) -> Sequence[RecentFailure]:
    """Return the last `limit` entries of several workers together, the latest failure first."""
    merged: dict[tuple[str, str], RecentFailure] = {}
    for entry in (entry for part in parts for entry in part):
        entry_id = (entry.key, entry.code)
        known = merged.get(entry_id)
        if known is not None:
            last, first = (entry, known) if entry.last_at > known.last_at else (known, entry)
            entry = msgspec.structs.replace(  # noqa: PLW2901 - the sum replaces it
                last, count=known.count + entry.count, first_at=min(last.first_at, first.first_at)
            )
        merged[entry_id] = entry
    return sorted(merged.values(), key=lambda entry: entry.last_at, reverse=True)[:limit]
