"""
Looking behind a client's back for a newer image, or for one that came by a better way, than the one it is shown.

Rules:
- A newer image replaces a stored one only at the hosts that the operator names, and only by a link whose services
  refuse a wrong signature with an error, that has not ended, and that was signed anew.
- What plain http brought is looked for by https again, at most once in some minutes, where both share a key.
- Nothing but a whole image changes anything, and the client never waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.errors import SourceRejected
from imgkeep.core.policy import judge
from imgkeep.images.fill import Fill
from imgkeep.images.negative_cache import fingerprint
from imgkeep.images.source_order import PLAIN_HTTP_TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.core.host_patterns import Globs
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Key, Record, Source, SourceInfo
    from imgkeep.images.confirmation import Confirmer
    from imgkeep.images.context import RequestContext
    from imgkeep.images.fill import FillDependencies, Settle, Tower
    from imgkeep.images.negative_cache import NegativeCache
    from imgkeep.images.peer_fill import FillLeases
    from imgkeep.images.singleflight import SingleFlight
    from imgkeep.images.source_order import SourceOrder

LINKS_MAX: Final = 65_536
"""With `sources.refresh`, so many links are known to have been asked by already; 150 bytes each, 10 MB."""
SOUGHT_MAX: Final = 16_384
"""Keys that https was tried for lately."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator wants besides keeping images for ever: `sources.permanent`, the hosts of `sources.refresh`."""

    redirect_permanent: bool = False
    refresh: Globs | None = None


class Refresher:
    """Looks for better images."""

    def __init__(  # noqa: PLR0913 - what the image_service shares with it
        self,
        rules: Rules,
        policy: Policy,
        dependencies: FillDependencies,
        *,
        tower: Tower,
        flights: SingleFlight[Fill],
        leases: FillLeases | None,
        confirmer: Confirmer,
        routes: SourceOrder,
        failures: NegativeCache,
        timer: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._policy = policy
        self._dependencies = dependencies
        self._tower = tower
        self._flights = flights
        self._leases = leases
        self._confirmer = confirmer
        self._source_order = routes
        self._negative_cache = failures
        self._asked: LRUCache[bytes, bool] = LRUCache(LINKS_MAX)
        """Fingerprints of the links that their origins were asked by."""
        self._sought: TTLCache[Key, bool] = TTLCache(SOUGHT_MAX, PLAIN_HTTP_TTL_S, timer=timer)

    def note_asked(self, source: Source) -> None:
        """An origin is asked by a link."""
        if self._rules.refresh is not None:
            self._asked[fingerprint(source)] = True

    def look(
        self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext, *, seek_secure: bool
    ) -> None:
        """Look for a better image than `known`, which is being shown; `seek_secure`: for one that came by https."""
        if request_context.from_own_node:
            return
        if seek_secure:
            self._seek_secure(source, info, known, request_context)
        elif self._wants_newer(source, info, known) and self._may_ask(source, request_context):
            settle = partial(self._confirmer.settle_refresh, known)
            if self._begin(f"refresh.{known.key}", source, info, settle, known=known):
                self.note_asked(source)

    def _seek_secure(self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext) -> None:
        route = None if known.key in self._sought else self._source_order.find_secure(source, info)
        if route is not None and self._may_ask(source, request_context):
            self._sought[known.key] = True
            settle = partial(self._confirmer.settle_https, known)
            self._begin(f"secure.{known.key}", source, info, settle, routes=(route,))

    def _wants_newer(self, source: Source, info: SourceInfo, known: Record) -> bool:
        """Whether a link was signed anew, verifiably, to an image that the operator wants to be looked after."""
        if self._rules.refresh is None or not self._rules.refresh.match(source.host):
            return False
        # The shape of a signature alone can be written by a stranger: its host has to be known to check it.
        if not (
            info.permission and info.enforced_by_host and info.enforced and info.is_fresh(self._dependencies.clock())
        ):
            return False
        if known.validator is None or not known.temporary or known.provider != info.provider:
            return False
        return fingerprint(source) not in self._asked

    def _may_ask(self, source: Source, request_context: RequestContext) -> bool:
        """Whether this visitor may have its origin asked, and the origin did not fail lately."""
        if judge(source, self._policy) is not None or self._negative_cache.find(source) is not None:
            return False
        try:
            request_context.authorize_fetch()
        except SourceRejected:
            return False
        return True

    def _begin(  # noqa: PLR0913 - what kind of look it is
        self,
        name: str,
        source: Source,
        info: SourceInfo,
        settle: Settle,
        *,
        routes: Sequence[Source] = (),
        known: Record | None = None,
    ) -> bool:
        """Begin a fill without readers, under the lease `name`; `False`: there is one."""
        if self._leases is not None and name not in self._flights and self._leases.acquire(name) is not None:
            return False
        fill = partial(
            Fill,
            source,
            info,
            self._dependencies,
            self._tower,
            routes=routes,
            settle=settle,
            unreachable=self._source_order.note_unreachable,
            known=known,
            over=partial(self._release, name),
        )
        return self._flights.join(name, fill)[1]

    def _release(self, name: str, *, kept: bool) -> None:
        if self._leases is not None:
            self._leases.release(name, stored=kept)
