"""
Refetches of incomplete images in the background, until a whole image takes their place.

The rules are those of `core/refetch_rules.py`; this module carries them out.

- The client gets the stored image and never waits. There is one refetch of a key at a time among all workers, under
  the lease of all refetches of the key. It asks the store before the origin: another worker or node may have done it.
- A refetch is a fill like any other: by the same links, checked and limited alike, at the expense of its client. It
  yields to fills that have readers. It fetches all bytes: a 304 of the origin is what is in question.
- Whatever an origin answers, the stored image stays unless a better one is durable. A refetch that fails counts as one.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import SEPARATE_RECORD_DOUBTS, fingerprint, read_link
from imgkeep.core.dead_link import refuses
from imgkeep.core.errors import (
    Busy,
    Conflict,
    ImgkeepError,
    NotAnImage,
    OriginError,
    Removed,
    SourceExpired,
    SourceRejected,
    StorageError,
    TooLarge,
    Yielded,
)
from imgkeep.core.records import Doubt
from imgkeep.core.refetch_rules import (
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    RefetchDecision,
    RefetchOutcome,
    decide_refetch,
    due_at,
    is_incomplete,
    judge_refetch,
    may_be_forged,
    record_after_longer,
    record_after_refetch,
)
from imgkeep.images.confirmer import is_continuation
from imgkeep.images.fill_result import Failed
from imgkeep.images.fill_starter import REFRESH_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from imgkeep.core.records import Digest, Key, Record, Source, SourceInfo
    from imgkeep.images.confirmer import Confirmer
    from imgkeep.images.fill_result import FillResult
    from imgkeep.images.fill_starter import FillStarter
    from imgkeep.images.request_context import RequestContext
    from imgkeep.storage.interfaces import Draft

REFETCHES_MAX: Final = 8
"""Maximum number of refetches at a time, an eighth of the fetches; the next request is another occasion."""
TRIED_LINKS_MAX: Final = 16_384
"""Maximum number of links that are known to have been tried once; 300 bytes each, 5 MB."""
USELESS_LINKS_MAX: Final = 16_384
"""Maximum number of links that are known to have brought nothing; 200 bytes each, 3 MB."""
STARTED_MAX: Final = 16_384
"""Maximum number of keys that are known to have been fetched again in the last minute; 200 bytes each, 3 MB."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IncompleteRefetch:
    """
    An incomplete image, and the link to fetch it by.

    Attributes:
        source: The link.
        info: The identity of its image.
        known: The record of the incomplete image.
        counts: Whether the record counts the refetch.
        may_be_forged: Whether an untrusted client may have written the link, so that its refusal does not count.
    """

    source: Source
    info: SourceInfo
    known: Record
    counts: bool
    may_be_forged: bool


class IncompleteRefetcher:
    """Starts the refetches of incomplete images. One per process."""

    def __init__(self, fills: FillStarter, confirmer: Confirmer, timer: Callable[[], float]) -> None:
        self._fills = fills
        self._dependencies = fills.dependencies
        self._confirmer = confirmer
        self._tried: LRUCache[str, Digest] = LRUCache(TRIED_LINKS_MAX)
        """By the link's fingerprint, the stored bytes that it was to replace."""
        self._started: TTLCache[tuple[Key, bool], bool] = TTLCache(STARTED_MAX, INTERVAL_MIN_S, timer=timer)
        """By key and whether the link counts: refetches of the last minute, also those that this server stopped."""
        self._useless_links: TTLCache[str, bool] = TTLCache(USELESS_LINKS_MAX, INTERVAL_MAX_S, timer=timer)
        """Fingerprints of links that brought nothing. Each has its own interval, and uses up that of no other link."""
        self._under_way = 0

    def start_if_due(self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext) -> bool:
        """Start a refetch of the image that a client is shown, if it is due; return whether the image is incomplete."""
        if not is_incomplete(known):
            return False
        link = read_link(source, info, self._dependencies.clock())
        decision = decide_refetch(known, link)
        counts = decision is RefetchDecision.IN_INTERVAL
        if counts:
            wanted = self._dependencies.clock() >= due_at(known) and link.fingerprint not in self._useless_links
        else:
            is_new = self._tried.get(link.fingerprint) != known.digest and not self._confirmer.was_tried(link, known)
            wanted = decision is RefetchDecision.ONCE and is_new
        # An image that waits in the outbox is replaced later: only the primary knows what it replaces.
        wanted = wanted and not known.pending and (known.key, counts) not in self._started
        if wanted and self._under_way < REFETCHES_MAX and self._fills.may_start(source, request_context):
            started = self._start(
                IncompleteRefetch(source, info, known, counts, may_be_forged(known, link)), request_context
            )
            if started:
                self._started[known.key, counts] = True
            if started and not counts:
                self._tried[link.fingerprint] = known.digest
        return True

    def _start(self, refetch: IncompleteRefetch, request_context: RequestContext) -> bool:
        """Start a fill without readers, unless there is one; return whether it was started."""
        started = self._fills.start_in_background(
            f"{REFRESH_PREFIX}{refetch.known.key}",
            refetch.source,
            refetch.info,
            request_context,
            put=partial(self._put, refetch),
            is_due=partial(self._is_due, refetch),
            listeners=(partial(self._end, refetch),),
        )
        self._under_way += started
        return started

    async def _end(self, refetch: IncompleteRefetch, result: FillResult) -> None:
        """Note a failure in which the origin has a part. A `FillListener`."""
        self._under_way -= 1
        if isinstance(result.outcome, Failed):
            error = result.outcome.error
            if isinstance(error, ImgkeepError) and not isinstance(error, (Busy, StorageError, Yielded)):
                await self._note_failure(refetch, error)

    async def _is_due(self, refetch: IncompleteRefetch) -> bool:
        """Ask the store whether the image is still the shown one: another worker or node may have replaced it."""
        current = await self._dependencies.store.find(refetch.known.key)
        if current is not None and current != refetch.known:
            await self._fills.changes.note_stored(current)
        if current is None or current.digest != refetch.known.digest or not is_incomplete(current):
            return False
        return not refetch.counts or self._dependencies.clock() >= due_at(current)

    async def _put(self, refetch: IncompleteRefetch, draft: Draft, new: Record) -> Record:
        """
        Store the image of a refetch, if it is better than the stored one; return the new record.

        Raises:
            Conflict: Nothing is stored any more, or another image since a moment ago.
        """
        current = await self._dependencies.store.find(refetch.known.key)
        if current is None:
            raise Conflict("the image was removed meanwhile")
        if current.digest != refetch.known.digest or not is_incomplete(current):
            return current
        continues = await is_continuation(current, draft)
        outcome = judge_refetch(current, new, continues=continues)
        self._dependencies.observer.completed(outcome.value)
        log.info("incomplete image fetched again", extra={"key": current.key, "outcome": outcome.value})
        if current.digest != new.digest and outcome is RefetchOutcome.LONGER:
            return await self._dependencies.store.put(
                draft, record_after_longer(current, new, self._now()), current.digest
            )
        if current.digest != new.digest and outcome is RefetchOutcome.WHOLE:
            # Whether others have records of their own is known of the key, not of what this link brought.
            new = new.with_doubts(new.doubts | (current.doubts & SEPARATE_RECORD_DOUBTS))
            return await self._confirmer.replace_stored(current, draft, new, continues=continues)
        if outcome is RefetchOutcome.OTHER and refetch.may_be_forged and Doubt.SCHEME in new.doubts:
            return await self._store_for_its_link(refetch, current, draft, new)
        counts = refetch.counts and (Doubt.PLAINTEXT not in new.doubts or Doubt.PLAINTEXT in current.doubts)
        if not counts and outcome is not RefetchOutcome.WHOLE:
            return current
        after = record_after_refetch(current, outcome, self._now())
        if not is_incomplete(after) and outcome is RefetchOutcome.EQUAL:
            self._dependencies.observer.completed("confirmed")
            log.info("incomplete image confirmed as it is", extra={"key": current.key})
        return await self._dependencies.store.put_record(after)

    async def _store_for_its_link(
        self, refetch: IncompleteRefetch, current: Record, draft: Draft, new: Record
    ) -> Record:
        """Store a whole image for its link, and for others if a probe shows that the origin checks the signature."""
        self._note_useless_link(refetch)
        if is_incomplete(new):
            return current
        return await self._confirmer.put_second_fill(refetch.source, refetch.info, current, draft, new)

    def _note_useless_link(self, refetch: IncompleteRefetch) -> None:
        """Remember that a link brought nothing, and leave the interval to other links."""
        self._useless_links[fingerprint(refetch.source)] = True
        self._started.pop((refetch.known.key, refetch.counts), None)

    async def _note_failure(self, refetch: IncompleteRefetch, error: ImgkeepError) -> None:
        """Have the interval grow, unless the failure may be that of the link alone."""
        self._dependencies.observer.completed(RefetchOutcome.FAILED.value)
        if not refetch.counts:
            return
        if refetch.may_be_forged and _is_of_link(error):
            self._note_useless_link(refetch)
            return
        with suppress(StorageError, Removed):  # then the next refetch is due after the shorter interval, if ever
            current = await self._dependencies.store.find(refetch.known.key)
            if current is not None and current.digest == refetch.known.digest and is_incomplete(current):
                after = record_after_refetch(current, RefetchOutcome.FAILED, self._now())
                await self._fills.changes.note_stored(await self._dependencies.store.put_record(after))

    def _now(self) -> datetime:
        return self._dependencies.clock().replace(microsecond=0)


def _is_of_link(error: ImgkeepError) -> bool:
    """Tell whether an origin may have failed because of the signature of the link."""
    if isinstance(error, (SourceRejected, SourceExpired, NotAnImage, TooLarge, Removed)):
        return True
    return isinstance(error, OriginError) and refuses(error.origin_status)
