"""
The last failures of fills, so that an operator sees what failed and why without a log.

Rules:
- An entry holds the key, host, provider and detail of a failure, and never a link.
- Failures of one key with one code are one entry with a count, so a page that shows a dead link again and again leaves
  room for others.
- The memory is bounded and each host has a share of it, so links that a stranger invents for one host leave the entries
  of others where they are. Links that the policy refuses have one share together: they may name any host.
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
REFUSED: Final = "refused by the policy"
"""The share of links that the policy refuses; no host has a space in its name."""
DETAIL_CHARS_MAX: Final = 300


class RecentFailure(msgspec.Struct, frozen=True, kw_only=True):
    """
    Failures of one key for one cause.

    Attributes:
        key: Of the image that was wanted; None for what has none.
        host: Of the link.
        provider: The service behind it, where the provider rules know it.
        code: As in the answers to clients.
        detail: What happened, for people.
        origin_status: What the origin answered, if it did.
        count: How many there were since `first_at`.
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
        """By key and code, the last to fail last."""
        self._shares: dict[tuple[str, str], str] = {}
        self._used: Counter[str] = Counter()

    def note(self, subject: Subject, error: BaseException, *, share: str | None = None) -> None:
        """Note that a fill has failed, or was not even begun. `share`: whose share it takes; as a rule the host's."""
        if isinstance(error, Yielded):  # stopped for another one; nothing failed
            return
        known_error = isinstance(error, ImgkeepError)
        code = error.code if isinstance(error, ImgkeepError) else "internal_error"
        now = self._clock().replace(microsecond=0)
        place, share = (subject.key, code), share or subject.host
        before = self._pop(place)
        self._make_room(share)
        self._entries[place] = RecentFailure(
            key=subject.key,
            host=subject.host,
            provider=subject.provider,
            code=code,
            detail=str(error)[:DETAIL_CHARS_MAX] if known_error else "the server met an error of its own",
            origin_status=getattr(error, "origin_status", None),
            count=1 if before is None else before.count + 1,
            first_at=now if before is None else before.first_at,
            last_at=now,
        )
        self._shares[place] = share
        self._used[share] += 1

    def list(self) -> list[RecentFailure]:
        """Return all entries, the last to fail first."""
        return list(reversed(self._entries.values()))

    def _make_room(self, share: str) -> None:
        if self._used[share] >= PER_HOST_MAX:
            self._pop(next(place for place in self._entries if self._shares[place] == share))
        elif len(self._entries) >= ENTRIES_MAX:
            self._pop(next(iter(self._entries)))

    def _pop(self, place: tuple[str, str]) -> RecentFailure | None:
        entry = self._entries.pop(place, None)
        if entry is not None:
            share = self._shares.pop(place)
            self._used[share] -= 1
            if not self._used[share]:
                del self._used[share]
        return entry


def merge_failures(parts: Iterable[Sequence[RecentFailure]], limit: int) -> Sequence[RecentFailure]:
    """Return the last `limit` entries of several workers, the last to fail first."""
    merged: dict[tuple[str, str], RecentFailure] = {}
    for entry in (entry for part in parts for entry in part):
        place = (entry.key, entry.code)
        known = merged.get(place)
        if known is not None:
            last, first = (entry, known) if entry.last_at > known.last_at else (known, entry)
            entry = msgspec.structs.replace(  # noqa: PLW2901 - the sum takes its place
                last, count=known.count + entry.count, first_at=min(last.first_at, first.first_at)
            )
        merged[place] = entry
    return sorted(merged.values(), key=lambda entry: entry.last_at, reverse=True)[:limit]
