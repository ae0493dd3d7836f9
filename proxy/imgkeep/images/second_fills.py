"""
Second fills: those of a link whose key has an image already, because imgkeep does not know whether that image stands
for the link (`core/confirmation.py`).
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from imgkeep.core.errors import ImgkeepError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.background_refresh import SourceRules
    from imgkeep.images.confirmer import Confirmer
    from imgkeep.images.fill import Fill
    from imgkeep.images.fill_coalescing import FillCoalescer
    from imgkeep.images.request_context import Delivery, HeldByPeer, RequestContext
    from imgkeep.images.source_policy import SourcePolicy

T = TypeVar("T")


class SecondFills:
    """The starter of second fills, under the same permissions, limits and leases as any other fill."""

    def __init__(
        self, coalescer: FillCoalescer, confirmer: Confirmer, *, policy: SourcePolicy, rules: SourceRules
    ) -> None:
        self._coalescer = coalescer
        self._confirmer = confirmer
        self._policy = policy
        self._rules = rules

    async def try_link(
        self,
        source: Source,
        info: SourceInfo,
        known: Record,
        request_context: RequestContext,
        follow: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
    ) -> T | HeldByPeer | None:
        """Start or join a second fill; `None`: it is not allowed, or the link brought no image."""
        if self._rules.redirect_permanent and not info.temporary:
            return None  # the operator wants no more such images
        with suppress(ImgkeepError):
            request_context.authorize_fetch()
            self._policy.require_fetch_allowed(source, info)
            put = partial(self._confirmer.put_second_fill, source, info, known)
            return await self._coalescer.try_link(source, info, request_context, follow, put)
        return None

    async def follow_peer(
        self, held: HeldByPeer, source: Source, info: SourceInfo, request_context: RequestContext
    ) -> Delivery | None:
        """Deliver the image that another worker fetches by the same link; `None`: the client gets the stored image."""
        with suppress(ImgkeepError):
            return await self._coalescer.follow_peer(held, source, info, request_context, None)
        return None
