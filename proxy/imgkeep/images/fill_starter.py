"""
The fill starter: starts one fill at a time for each name in this process, and for each lease among all workers.

Among the workers of a machine a lease decides before a fill starts, and takes microseconds. What the other nodes answer
takes a round trip to the database, so it is the first step of the fill: local requests join the fill meanwhile. If
another node has the lease, the fill ends with that answer, and each request follows the holder.

A fill has the name of its lease: the key of its image for a fill of a miss, or one of the prefixes below and a key or
the hash of a link.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import (
    FilledByPeer,
    ImgkeepError,
    LoopDetected,
    RateLimited,
    Removed,
    SourceRejected,
    StorageError,
)
from imgkeep.core.policy import judge
from imgkeep.images.fill import Fill
from imgkeep.images.fill_result import Failed, NotBegun, Skipped, Stored
from imgkeep.images.interfaces import LinkFailure
from imgkeep.images.lease_preparation import NOTHING_TO_PREPARE, LeasePreparation, LeasePreparations
from imgkeep.images.negative_cache import NegativeCache, failure_ttl_s, hash_link
from imgkeep.images.request_context import INTERNAL
from imgkeep.images.singleflight import SingleFlight
from imgkeep.images.source_order import SourceOrder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.fill import FirstStep, PutImage
    from imgkeep.images.fill_rate_limit import RateLimiter
    from imgkeep.images.fill_result import FillListener, FillResult
    from imgkeep.images.interfaces import LeaseRequest, Leases
    from imgkeep.images.peer_fill import PeerFill
    from imgkeep.images.record_changes import RecordChanges
    from imgkeep.images.request_context import RequestContext

SECOND_FILL_PREFIX: Final = "try."
"""Prefix of the name of a second fill, before the hash of its link: its key has an image already."""
REFRESH_PREFIX: Final = "refresh."
"""Prefix of the name of a fill or refetch in the background that may replace the image of a key."""
HTTPS_REFRESH_PREFIX: Final = "secure."
"""Prefix of the name of a fill in the background that fetches the image of a key over https."""

log = logging.getLogger(__name__)


class FillStarter:
    """
    Starts fills, with what they share.

    Attributes:
        running: The fills of this process by name.
        followed: The fills of other workers and nodes that requests of this worker follow, by name.
        leases: `None`: this is the only worker.
        preparations: Requests for leases that run beside lookups; `None`: likewise.
    """

    def __init__(  # noqa: PLR0913 - all but one by keyword
        self,
        dependencies: FillDependencies,
        *,
        policy: Policy,
        running: SingleFlight[Fill],
        changes: RecordChanges,
        leases: Leases | None,
        rate_limiter: RateLimiter | None,
        timer: Callable[[], float],
    ) -> None:
        self.dependencies = dependencies
        self.policy = policy
        self.running = running
        self.followed: SingleFlight[PeerFill] = SingleFlight()
        self.changes = changes
        self.leases = leases
        self.preparations = None if leases is None else LeasePreparations(leases, running, self.followed)
        self.negative_cache = NegativeCache(timer)
        self.source_order = SourceOrder(policy, timer)
        self._rate_limiter = rate_limiter

    def require_start(
        self, source: Source, request_context: RequestContext, lookup_fault: StorageError | None = None
    ) -> None:
        """
        Raise what spares the origin a request.

        Raises:
            ImgkeepError: The link failed a moment ago, or another node of this installation asks.
        """
        error = self.negative_cache.find(source)
        if error is not None:
            raise error if lookup_fault is None else neither_available(lookup_fault)
        if request_context.from_own_node:
            raise lookup_fault or LoopDetected("the request came from this server or from another node of it")

    def may_start(self, source: Source, request_context: RequestContext) -> bool:
        """Tell whether a request may cause a fill in the background, and the link did not fail a moment ago."""
        if request_context.from_own_node:
            return False
        if judge(source, self.policy) is not None or self.negative_cache.find(source) is not None:
            return False
        try:
            request_context.authorize_fetch()
        except SourceRejected:
            return False
        return True

    def prepare(self, name: str, source: Source, request_context: RequestContext) -> LeasePreparation:
        """Return the context of a lookup that may end in a fill of this name."""
        if self.preparations is None:
            return NOTHING_TO_PREPARE
        return LeasePreparation(self.preparations, name, partial(self._find_link, source, request_context))

    def acquire(self, name: str) -> str | None:
        """
        Acquire a lease, unless a fill here has it; `None`: this worker has it. Else the worker or member that has it:
        without a further request for the lease, if this worker follows it already.
        """
        if self.leases is None or name in self.running:
            return None
        followed = self.followed.find(name)
        return self.leases.acquire(name) if followed is None else followed.holder

    def release(self, name: str, *, stored: bool = False) -> None:
        """Release a lease, if this worker has it."""
        if self.leases is not None:
            self.leases.release(name, stored=stored)

    def join(  # noqa: PLR0913 - the last two are for rare kinds of fill
        self,
        name: str,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        *,
        put: PutImage | None = None,
        lookup_fault: StorageError | None = None,
    ) -> tuple[Fill, bool]:
        """
        Join the fill of a name, or start one whose lease this worker has; return it, and whether it starts only now.

        Raises:
            RateLimited: The client has caused enough fills for now; the lease is released.
        """
        start = partial(self._start, name, source, info, request_context, put=put, lookup_fault=lookup_fault)
        return self.running.join(name, start)

    def start_in_background(  # noqa: PLR0913 - the last ones are for rare kinds of fill
        self,
        name: str,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext = INTERNAL,
        *,
        sources: Sequence[Source] | None = None,
        put: PutImage,
        known: Record | None = None,
        is_due: Callable[[], Awaitable[bool]] | None = None,
        listeners: Sequence[FillListener] = (),
    ) -> bool:
        """
        Start a fill without readers; `False`: one runs, here or in another worker, or the client has caused enough.

        Args as those of `Fill`; `sources` `None`: https before http, as for any client.
        """
        if name in self.running or self.acquire(name) is not None:
            return False
        start = partial(
            self._start,
            name,
            source,
            info,
            request_context,
            sources=sources,
            put=put,
            known=known,
            background=is_due is not None,
            is_due=is_due,
            listeners=listeners,
        )
        try:
            self.running.join(name, start)
        except RateLimited:
            return False
        return True

    def _find_link(self, source: Source, request_context: RequestContext) -> bytes | None:
        """Return the hash of a link, or `None` where the request may cause no fill by it."""
        return hash_link(source) if self.may_start(source, request_context) else None

    def _start(  # noqa: PLR0913 - what fills differ in
        self,
        name: str,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        *,
        sources: Sequence[Source] | None = None,
        listeners: Sequence[FillListener] = (),
        put: PutImage | None = None,
        lookup_fault: StorageError | None = None,
        known: Record | None = None,
        background: bool = False,
        is_due: Callable[[], Awaitable[bool]] | None = None,
    ) -> Fill:
        all_listeners: tuple[FillListener, ...] = (
            partial(self._update_memory, source, put is None and known is None and lookup_fault is None),
            self.dependencies.observer.fill_ended,
            *listeners,
            *self._release_after(name, source, request_context),
        )
        return Fill(
            source,
            info,
            self.dependencies,
            listeners=all_listeners,
            sources=self.source_order.find(source, info) if sources is None else sources,
            source_unreachable=self.source_order.note_unreachable,
            put=put,
            lookup_fault=lookup_fault,
            known=known,
            client=request_context.client,
            background=background,
            first_step=self._find_first_step(name, source, is_due),
        )

    def _find_first_step(
        self, name: str, source: Source, is_due: Callable[[], Awaitable[bool]] | None
    ) -> FirstStep | None:
        """Return what a fill does before the fetch: it waits for its lease, and finds out whether it is due."""
        request = None
        if self.leases is not None and self.preparations is not None:
            request = self.leases.request(name, hash_link(source))
            self.preparations.take(name)
        return None if request is None and is_due is None else partial(_run_first_step, request, is_due)

    def _release_after(self, name: str, source: Source, request_context: RequestContext) -> Sequence[FillListener]:
        """Charge the client; return the listeners that release the lease and the permit."""
        release = partial(self._release_lease, name, source)
        if self._rate_limiter is None or request_context.client.own:
            return (release,)
        try:
            permit = self._rate_limiter.acquire(request_context.client.networks)
        except ImgkeepError:
            self.release(name)
            raise
        return release, permit.fill_ended

    async def _update_memory(
        self,
        source: Source,
        is_first: bool,  # noqa: FBT001 - as a listener has it bound
        result: FillResult,
    ) -> None:
        """Remember the new record, or the failure of the link."""
        outcome = result.outcome
        if isinstance(outcome, Stored):
            await self.changes.note_stored(outcome.record, is_first=is_first)
        elif isinstance(outcome, Failed):
            if isinstance(outcome.error, ImgkeepError):
                self.negative_cache.add(source, outcome.error)
            else:
                # Its readers report it as well, but all of them may have left.
                log.error("fill failed unexpectedly", exc_info=outcome.error)
        elif isinstance(outcome, NotBegun) and outcome.ttl_s > 0:
            self.negative_cache.add(source, outcome.error, outcome.ttl_s)

    async def _release_lease(self, name: str, source: Source, result: FillResult) -> None:
        if self.leases is None:
            return
        failure = _failure_for_peers(source, result)
        if failure is None:
            self.leases.release(name, stored=isinstance(result.outcome, Stored))
        else:
            await self.leases.fail(name, failure)


async def _run_first_step(
    request: LeaseRequest | None, is_due: Callable[[], Awaitable[bool]] | None
) -> Skipped | NotBegun | None:
    answer = None if request is None else await request.answer()
    if isinstance(answer, LinkFailure):
        return NotBegun(answer.error, answer.ttl_s)
    if answer is not None:
        return NotBegun(FilledByPeer(holder=answer.holder, lease=answer.lease))
    return None if is_due is None or await is_due() else Skipped()


def _failure_for_peers(source: Source, result: FillResult) -> LinkFailure | None:
    """Return the failure that other nodes remember; not of blocked bytes, which an operator may unblock."""
    if not isinstance(result.outcome, Failed):
        return None
    error = result.outcome.error
    if not isinstance(error, ImgkeepError) or isinstance(error, Removed):
        return None
    ttl_s = failure_ttl_s(error)
    return LinkFailure(hash_link(source), error, ttl_s) if ttl_s > 0 else None


def neither_available(fault: StorageError) -> StorageError:
    """Return the failure of both the store and the origin: the image may be stored all the same, so this is no 404."""
    return StorageError(f"the store cannot be read, and the origin does not give the image: {fault}")
