"""
The refetches of an image that is incomplete by its format, although the HTTP framing was complete.

Rules:
- imgkeep stores and serves the image with the doubt `incomplete`: clients cache it for a minute, and requests with a
  suitable link refetch it, at most once in an interval that grows from a minute to a day.
- Only a link that is trusted as much as the one that brought the image uses up the interval and counts: an unverified
  link could delay the completion, or confirm a placeholder. Any other link causes one refetch.
- If an origin refuses a signed link that did not bring the image, that says nothing about the image: a stranger can
  forge one. The same holds for other bytes by the shape of a signature alone.
- A link that is trusted as much replaces the image by a whole one. Bytes that begin with the stored ones are more of
  the same image: these replace it whichever link brings them.
- Another incomplete image replaces it only if it begins with it, and never replaces a whole one.
- Bytes that come back equal three times, a day or more after they first came, are all that the owner has: JPEG files
  without EOI and GIF files without a trailer exist. The doubt goes, and the record stores the refetches.
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
"""Interval before the first refetch: as long as clients cache the image."""
INTERVAL_FACTOR: Final = 3
"""Factor by which the interval grows: eight refetches in the first two days, then one a day."""
INTERVAL_MAX_S: Final = 86_400
"""Maximum interval between two refetches."""
EQUAL_REFETCHES_MIN: Final = 3
"""Minimum number of refetches that bring the same bytes before these count as all there is."""
CONFIRM_AFTER_S: Final = 86_400
"""Minimum time since the bytes first came: an owner who repeats a broken upload does so within a day."""


class RefetchDecision(Enum):
    """The decision whether a request may refetch an incomplete image."""

    IN_INTERVAL = "at most once in an interval, and the result counts"
    ONCE = "once: it replaces the image only by more of the same image"
    NEVER = "the link has expired"


class RefetchOutcome(Enum):
    """The result of a refetch of an incomplete image."""

    WHOLE = "whole"
    LONGER = "longer"
    EQUAL = "equal"
    OTHER = "other"
    FAILED = "failed"


def is_incomplete(record: Record) -> bool:
    return Doubt.INCOMPLETE in record.doubts


def is_confirmed_as_it_is(record: Record) -> bool:
    """Return whether refetches have confirmed that an image, incomplete by its format, is all that its owner has."""
    return record.refetches is not None and not is_incomplete(record)


def mark(record: Record) -> Record:
    """Return the record with the doubt `incomplete`, unless refetches have confirmed the image as it is."""
    return record if is_confirmed_as_it_is(record) else record.with_doubts(record.doubts | {Doubt.INCOMPLETE})


def due_at(record: Record) -> datetime:
    """Return when the next refetch of an incomplete image is due."""
    done = record.refetches
    if done is None:
        return record.stored_at + timedelta(seconds=INTERVAL_MIN_S)
    # The limit protects against a number of tries in a damaged record.
    seconds = INTERVAL_MIN_S * INTERVAL_FACTOR ** min(max(done.tries, 0), 16)
    return done.last_at + timedelta(seconds=min(seconds, INTERVAL_MAX_S))


def decide_refetch(record: Record, link: Link) -> RefetchDecision:
    """Decide whether a request with a link may refetch an incomplete image."""
    if link.ended:
        return RefetchDecision.NEVER
    is_own = record.brought_by == link.fingerprint
    plaintext = Doubt.PLAINTEXT in record.doubts  # the refetch finds out about the link's own way
    trusted = is_own or is_trusted_as_much(record.doubts, doubts_of(link, plaintext=plaintext))
    return RefetchDecision.IN_INTERVAL if trusted else RefetchDecision.ONCE


def may_be_forged(record: Record, link: Link) -> bool:
    """Return whether a stranger may have forged a link: then its refusal says nothing about the image."""
    return link.signed and record.brought_by != link.fingerprint


def judge_refetch(known: Record, new: Record, *, continues: bool) -> RefetchOutcome:
    """
    Evaluate a refetch.

    Args:
        known: The record of the incomplete image.
        new: The record that the new bytes would get.
        continues: Whether the new bytes begin with the stored ones and are longer.
    """
    if known.digest == new.digest:
        return RefetchOutcome.EQUAL if is_incomplete(new) else RefetchOutcome.WHOLE
    if compare_records(known, new, continues=continues) is not Comparison.REPLACE:
        return RefetchOutcome.OTHER
    return RefetchOutcome.LONGER if is_incomplete(new) else RefetchOutcome.WHOLE


def record_after_refetch(known: Record, outcome: RefetchOutcome, now: datetime) -> Record:
    """Return the record of an image that stays, after a refetch that counts."""
    done = known.refetches or Refetches(0, 0, known.stored_at, known.stored_at)
    if outcome is RefetchOutcome.WHOLE:
        return _without_doubt(known, None)  # a newer version judged the same bytes better
    if outcome is RefetchOutcome.OTHER:
        done = replace(done, equal=0, since=now)
    done = replace(done, tries=done.tries + 1, equal=done.equal + (outcome is RefetchOutcome.EQUAL), last_at=now)
    if done.equal >= EQUAL_REFETCHES_MIN and (now - done.since).total_seconds() >= CONFIRM_AFTER_S:
        return _without_doubt(known, done)
    return replace(known, trust=replace(known.trust, refetches=done))


def record_after_longer(known: Record, new: Record, now: datetime) -> Record:
    """Return the record of a longer image that is still incomplete."""
    tries = 0 if known.refetches is None else known.refetches.tries
    doubts = new.doubts | (known.doubts & SEPARATE_RECORD_DOUBTS)
    return replace(new, trust=replace(new.trust, doubts=doubts, refetches=Refetches(tries + 1, 0, now, now)))


def _without_doubt(known: Record, refetches: Refetches | None) -> Record:
    doubts = known.doubts - {Doubt.INCOMPLETE}
    return replace(
        known, trust=Trust(doubts=doubts, brought_by=known.brought_by if doubts else "", refetches=refetches)
    )
