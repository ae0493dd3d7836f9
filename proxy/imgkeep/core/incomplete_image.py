"""
What becomes of an image whose framing was whole and whose format says that something is missing.

Rules:
- It is stored and shown, and has the doubt `incomplete`: clients keep it for a minute, and it is fetched again when a
  link asks that may have it fetched, at most once in an interval that grows from a minute to a day.
- Only links that are trusted as much as the one that brought it use up the interval and count as its owner's word: an
  unverified link could keep it from being completed, or confirm a placeholder. Any other link is tried once.
- What an origin refuses to a signed link that did not bring the image says nothing of the image: a stranger can invent
  one. The same is true of other bytes that came by the shape of a signature alone.
- A whole image takes its place by the word of a link that is trusted as much. Bytes that begin with the stored ones are
  more of the same image: these take its place whichever link brings them.
- Another incomplete image takes its place only where it begins with it, and never that of a whole one.
- What comes back equal three times, a day or more after it came first, is what its owner has: JPEG files without EOI
  and GIF files without a trailer exist. The doubt goes, and the record keeps how that came about.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Final

from imgkeep.core.confirmation import SEPARATE_RECORD_DOUBTS, Comparison, compare_records, doubts_of, is_trusted_as_much
from imgkeep.core.records import Doubt, Refetches, Trust

if TYPE_CHECKING:
    from datetime import datetime

    from imgkeep.core.confirmation import Link
    from imgkeep.core.records import Record

INTERVAL_MIN_S: Final = 60
"""Interval before the first refetch: as long as a client may keep the image."""
INTERVAL_FACTOR: Final = 3
"""Factor by which the interval grows: eight refetches in the first two days, then one a day."""
INTERVAL_MAX_S: Final = 86_400
EQUAL_REFETCHES_MIN: Final = 3
"""Minimum number of refetches that bring the same bytes before these count as all there is."""
CONFIRM_AFTER_S: Final = 86_400
"""Minimum time from when the bytes came first: an upload that broke off is repeated within a day, if it ever is."""


class RefetchDecision(Enum):
    """Whether a link may have an incomplete image fetched again."""

    IN_INTERVAL = "at most once in an interval, and what it brings counts"
    ONCE = "once: it replaces the image only with more of the same picture"
    NEVER = "it has ended"


class RefetchOutcome(Enum):
    """What a refetch of an incomplete image has brought."""

    WHOLE = "whole"
    LONGER = "longer"
    EQUAL = "equal"
    OTHER = "other"
    FAILED = "failed"


def is_incomplete(record: Record) -> bool:
    return Doubt.INCOMPLETE in record.doubts


def is_confirmed_as_it_is(record: Record) -> bool:
    """Return whether an image that its format calls incomplete was seen to be all that its owner has."""
    return record.refetches is not None and not is_incomplete(record)


def mark(record: Record) -> Record:
    """Return the record of an image that was found incomplete after it was stored, unless it is confirmed as it is."""
    return record if is_confirmed_as_it_is(record) else record.with_doubts(record.doubts | {Doubt.INCOMPLETE})


def due_at(record: Record) -> datetime:
    """Return when an incomplete image is due to be fetched again."""
    done = record.refetches
    if done is None:
        return record.stored_at + timedelta(seconds=INTERVAL_MIN_S)
    # No power of a number that a damaged record may say.
    seconds = INTERVAL_MIN_S * INTERVAL_FACTOR ** min(max(done.tries, 0), 16)
    return done.last_at + timedelta(seconds=min(seconds, INTERVAL_MAX_S))


def decide_refetch(record: Record, link: Link) -> RefetchDecision:
    """Return whether a link may have an incomplete image fetched again."""
    if link.ended:
        return RefetchDecision.NEVER
    is_own = record.brought_by == link.fingerprint
    plaintext = Doubt.PLAINTEXT in record.doubts  # whether the link is, is known when it was followed
    trusted = is_own or is_trusted_as_much(record.doubts, doubts_of(link, plaintext=plaintext))
    return RefetchDecision.IN_INTERVAL if trusted else RefetchDecision.ONCE


def may_be_forged(record: Record, link: Link) -> bool:
    """
    Return whether a stranger may have written the signature of a link: that it is refused says nothing of the image.
    """
    return link.signed and record.brought_by != link.fingerprint


def judge_refetch(known: Record, new: Record, *, continues: bool) -> RefetchOutcome:
    """
    Return what a refetch has brought.

    Args:
        known: The record of the incomplete image.
        new: The record that the new bytes would get.
        continues: Whether the new bytes are more than the stored ones and begin with them.
    """
    if known.digest == new.digest:
        return RefetchOutcome.EQUAL if is_incomplete(new) else RefetchOutcome.WHOLE
    if compare_records(known, new, continues=continues) is not Comparison.REPLACE:
        return RefetchOutcome.OTHER
    return RefetchOutcome.LONGER if is_incomplete(new) else RefetchOutcome.WHOLE


def record_after_refetch(known: Record, outcome: RefetchOutcome, now: datetime) -> Record:
    """Return the record of an image that stays, after a refetch that its owner's word counts in."""
    done = known.refetches or Refetches(0, 0, known.stored_at, known.stored_at)
    if outcome is RefetchOutcome.WHOLE:
        return _without_doubt(known, None)  # the same bytes, judged better than before
    if outcome is RefetchOutcome.OTHER:
        done = replace(done, equal=0, since=now)
    done = replace(done, tries=done.tries + 1, equal=done.equal + (outcome is RefetchOutcome.EQUAL), last_at=now)
    if done.equal >= EQUAL_REFETCHES_MIN and (now - done.since).total_seconds() >= CONFIRM_AFTER_S:
        return _without_doubt(known, done)
    return replace(known, trust=replace(known.trust, refetches=done))


def record_after_longer(known: Record, new: Record, now: datetime) -> Record:
    """Return the record of more of the same image, which is still incomplete."""
    tries = 0 if known.refetches is None else known.refetches.tries
    doubts = new.doubts | (known.doubts & SEPARATE_RECORD_DOUBTS)
    return replace(new, trust=replace(new.trust, doubts=doubts, refetches=Refetches(tries + 1, 0, now, now)))


def _without_doubt(known: Record, refetches: Refetches | None) -> Record:
    doubts = known.doubts - {Doubt.INCOMPLETE}
    return replace(
        known, trust=Trust(doubts=doubts, brought_by=known.brought_by if doubts else "", refetches=refetches)
    )
