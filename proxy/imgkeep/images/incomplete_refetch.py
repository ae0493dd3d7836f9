"""
Fetching incomplete images again behind a client's back, until a whole one takes their place.

The rules are those of `core/incomplete_image.py`; here they are carried out.

- The client is served what is stored and never waits. One refetch a key at a time among all workers, under the name
  that other refetches of the key have. The store is asked before the origin: another worker or node may have done it.
- A refetch is a fill like any other: by the same routes, judged and limited alike, at its visitor's cost. It yields to
  fills that have readers. It asks for all bytes: an origin's word that nothing has changed is what is in question.
- Whatever an origin answers, the stored image stays unless a better one is durable. A refetch that fails counts as one.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import OTHERS, fingerprint, read_link
from imgkeep.core.dead_link import refuses
from imgkeep.core.errors import (
    Busy,
    Conflict,
    ImgkeepError,
    NotAnImage,
    OriginError,
    Removed,
    SourceRejected,
    StorageError,
    TooLarge,
    Yielded,
)
from imgkeep.core.incomplete_image import (
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    Ask,
    Outcome,
    after_longer,
    after_refetch,
    due_at,
    is_incomplete,
    judge_refetch,
    may_ask,
    may_be_invented,
)
from imgkeep.core.policy import judge
from imgkeep.core.records import Doubt
from imgkeep.images.confirmation import is_continuation
from imgkeep.images.fill import Fill

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Digest, Key, Record, Source, SourceInfo
    from imgkeep.images.confirmation import Confirmer
    from imgkeep.images.context import RequestContext
    from imgkeep.images.fill import FillDependencies, Tower
    from imgkeep.images.negative_cache import NegativeCache
    from imgkeep.images.peer_fill import FillLeases
    from imgkeep.images.rate_limit import Permit, RateLimiter
    from imgkeep.images.singleflight import SingleFlight
    from imgkeep.images.source_order import SourceOrder
    from imgkeep.storage.interfaces import Draft

REFETCHES_MAX: Final = 8
"""Maximum number of refetches at a time, an eighth of the fetches; the next request is another occasion."""
TRIED_MAX: Final = 16_384
"""Links that are known to have been tried once; 300 bytes each, 5 MB."""
WORTHLESS_MAX: Final = 16_384
"""Links that brought nothing; 200 bytes each, 3 MB."""
BEGUN_MAX: Final = 16_384
"""Keys that were fetched again in the last minute, whatever came of it; 200 bytes each, 3 MB."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refetch:
    """
    An incomplete image, and the link to fetch it by.

    Attributes:
        counts: Whether what comes of it goes into its record.
        may_be_invented: Whether a refusal does not.
    """

    source: Source
    info: SourceInfo
    known: Record
    counts: bool
    may_be_invented: bool


class IncompleteRefetcher:
    """Has incomplete images fetched again. One per process."""

    def __init__(  # noqa: PLR0913 - what the image_service shares with it
        self,
        policy: Policy,
        dependencies: FillDependencies,
        *,
        tower: Tower,
        flights: SingleFlight[Fill],
        leases: FillLeases | None,
        confirmer: Confirmer,
        routes: SourceOrder,
        failures: NegativeCache,
        rate_limiter: RateLimiter | None,
        timer: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._dependencies = dependencies
        self._tower = tower
        self._flights = flights
        self._leases = leases
        self._confirmer = confirmer
        self._source_order = routes
        self._negative_cache = failures
        self._rate_limiter = rate_limiter
        self._tried: LRUCache[str, Digest] = LRUCache(TRIED_MAX)
        """By the link's fingerprint, the bytes that it was tried against."""
        self._begun: TTLCache[tuple[Key, bool], bool] = TTLCache(BEGUN_MAX, INTERVAL_MIN_S, timer=timer)
        """By key and whether the link counts. What we broke off ourselves does not make the interval grow."""
        self._worthless: TTLCache[str, bool] = TTLCache(WORTHLESS_MAX, INTERVAL_MAX_S, timer=timer)
        """By fingerprint, links that brought nothing. Their interval is their own: they use up no other link's."""
        self._under_way = 0

    def look(self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext) -> bool:
        """Have an incomplete image that is being shown fetched again, if it is due; return whether it is incomplete."""
        if not is_incomplete(known):
            return False
        link = read_link(source, info, self._dependencies.clock())
        ask = may_ask(known, link)
        counts = ask is Ask.IN_ITS_TURN
        if counts:
            wanted = self._dependencies.clock() >= due_at(known) and link.fingerprint not in self._worthless
        else:
            is_new = self._tried.get(link.fingerprint) != known.digest and not self._confirmer.was_tried(link, known)
            wanted = ask is Ask.ONCE and is_new
        # What waits for the primary is replaced there only, where it is known what it replaces.
        wanted = wanted and not known.pending and (known.key, counts) not in self._begun
        if wanted and self._may_ask(source, request_context):
            begun = self._begin(Refetch(source, info, known, counts, may_be_invented(known, link)), request_context)
            if begun:
                self._begun[known.key, counts] = True
            if begun and not counts:
                self._tried[link.fingerprint] = known.digest
        return True

    def _may_ask(self, source: Source, request_context: RequestContext) -> bool:
        """Whether this visitor may have its origin asked, and the origin did not fail by this link lately."""
        if request_context.from_own_node or self._under_way >= REFETCHES_MAX:
            return False
        if judge(source, self._policy) is not None or self._negative_cache.find(source) is not None:
            return False
        try:
            request_context.authorize_fetch()
        except SourceRejected:
            return False
        return True

    def _begin(self, refetch: Refetch, request_context: RequestContext) -> bool:
        """Begin a fill without readers, unless there is one; return whether it began."""
        name = f"refresh.{refetch.known.key}"
        if name in self._flights or (self._leases is not None and self._leases.acquire(name) is not None):
            return False
        permit: Permit | None = None
        if self._rate_limiter is not None and not request_context.client.own:
            try:
                permit = self._rate_limiter.acquire(request_context.client.networks)
            except ImgkeepError:
                self._release(name)
                return False
        self._under_way += 1
        self._flights.join(
            name,
            lambda: _Refetching(
                refetch.source,
                refetch.info,
                self._dependencies,
                self._tower,
                routes=self._source_order.find(refetch.source, refetch.info),
                settle=partial(self._settle, refetch),
                unreachable=self._source_order.note_unreachable,
                permit=permit,
                over=partial(self._over, name),
                client=request_context.client,
                background=True,
                is_due=partial(self._is_due, refetch),
                failed=partial(self._note_failure, refetch),
            ),
        )
        return True

    def _over(self, name: str, *, kept: bool) -> None:
        self._under_way -= 1
        self._release(name, kept=kept)

    def _release(self, name: str, *, kept: bool = False) -> None:
        if self._leases is not None:
            self._leases.release(name, stored=kept)

    async def _is_due(self, refetch: Refetch) -> bool:
        """Ask the store whether the image is still what was seen: another worker or node may have fetched it again."""
        current = await self._dependencies.store.find(refetch.known.key)
        if current is not None and current != refetch.known:
            await self._tower.kept(current)
        if current is None or current.digest != refetch.known.digest or not is_incomplete(current):
            return False
        return not refetch.counts or self._dependencies.clock() >= due_at(current)

    async def _settle(self, refetch: Refetch, draft: Draft, new: Record) -> Record:
        """
        Keep what a refetch has brought, where it is better than what is stored; return the record that stands then.

        Raises:
            Conflict: Nothing is stored any more, or something else is since a moment.
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
        if current.digest != new.digest and outcome is Outcome.LONGER:
            return await self._dependencies.store.put(draft, after_longer(current, new, self._now()), current.digest)
        if current.digest != new.digest and outcome is Outcome.WHOLE:
            # Whether others have records of their own is known of the key, not of what this link brought.
            new = replace(new, doubts=new.doubts | (current.doubts & OTHERS))
            return await self._confirmer.replace_stored(current, draft, new, continues=continues)
        if outcome is Outcome.OTHER and refetch.may_be_invented and Doubt.SCHEME in new.doubts:
            return await self._keep_apart(refetch, current, draft, new)
        counts = refetch.counts and (Doubt.PLAINTEXT not in new.doubts or Doubt.PLAINTEXT in current.doubts)
        if not counts and outcome is not Outcome.WHOLE:
            return current
        after = after_refetch(current, outcome, self._now())
        if not is_incomplete(after) and outcome is Outcome.EQUAL:
            self._dependencies.observer.completed("confirmed")
            log.info("incomplete image confirmed as it is", extra={"key": current.key})
        return await self._dependencies.store.put_record(after)

    async def _keep_apart(self, refetch: Refetch, current: Record, draft: Draft, new: Record) -> Record:
        """Keep a whole image for its link, and for others if the signature is seen to make a difference."""
        self._note_worthless(refetch)
        if is_incomplete(new):
            return current
        return await self._confirmer.settle(refetch.source, refetch.info, current, draft, new)

    def _note_worthless(self, refetch: Refetch) -> None:
        """Leave the interval to other links."""
        self._worthless[fingerprint(refetch.source)] = True
        self._begun.pop((refetch.known.key, refetch.counts), None)

    async def _note_failure(self, refetch: Refetch, error: ImgkeepError) -> None:
        """Have the interval grow, unless the failure may be the link's alone."""
        self._dependencies.observer.completed(Outcome.FAILED.value)
        if not refetch.counts:
            return
        if refetch.may_be_invented and _is_of_link(error):
            self._note_worthless(refetch)
            return
        with suppress(StorageError):  # then it is tried again after the shorter interval
            current = await self._dependencies.store.find(refetch.known.key)
            if current is not None and current.digest == refetch.known.digest and is_incomplete(current):
                after = after_refetch(current, Outcome.FAILED, self._now())
                await self._tower.kept(await self._dependencies.store.put_record(after))

    def _now(self) -> datetime:
        return self._dependencies.clock().replace(microsecond=0)


class _Refetching(Fill):
    """A fill without readers that is begun only if it is still due, and whose failure is noted before it is over."""

    def __init__(
        self,
        *fill: Any,
        is_due: Callable[[], Awaitable[bool]],
        failed: Callable[[ImgkeepError], Awaitable[None]],
        **options: Any,
    ) -> None:
        super().__init__(*fill, **options)
        self._is_due = is_due
        self._failed = failed

    async def run(self) -> None:
        if not await self._is_due():
            self.stop()
            return
        try:
            await super().run()
        except (Busy, StorageError, Yielded):
            raise  # the origin has no part in it
        except ImgkeepError as error:
            await self._failed(error)
            raise


def _is_of_link(error: ImgkeepError) -> bool:
    """Whether an origin may have failed because of how the link is signed."""
    if isinstance(error, (SourceRejected, NotAnImage, TooLarge, Removed)):
        return True
    return isinstance(error, OriginError) and refuses(error.origin_status)
