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
from imgkeep.images.source_order import PLAIN_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.core.host_patterns import Globs
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Key, Record, Source, SourceInfo
    from imgkeep.images.confirmation import Trials
    from imgkeep.images.context import Visit
    from imgkeep.images.fill import Neighbours, Settle, Tower
    from imgkeep.images.negative_cache import Failures
    from imgkeep.images.singleflight import Flights
    from imgkeep.images.source_order import Routes
    from imgkeep.ports import Claims

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

    def __init__(  # noqa: PLR0913 - what the keeper shares with it
        self,
        rules: Rules,
        policy: Policy,
        neighbours: Neighbours,
        *,
        tower: Tower,
        flights: Flights[Fill],
        claims: Claims | None,
        trials: Trials,
        routes: Routes,
        failures: Failures,
        timer: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._policy = policy
        self._to = neighbours
        self._tower = tower
        self._flights = flights
        self._claims = claims
        self._trials = trials
        self._routes = routes
        self._failures = failures
        self._asked: LRUCache[bytes, bool] = LRUCache(LINKS_MAX)
        """Fingerprints of the links that their origins were asked by."""
        self._sought: TTLCache[Key, bool] = TTLCache(SOUGHT_MAX, PLAIN_S, timer=timer)

    def note_asked(self, source: Source) -> None:
        """An origin is asked by a link."""
        if self._rules.refresh is not None:
            self._asked[fingerprint(source)] = True

    def look(self, source: Source, info: SourceInfo, known: Record, visit: Visit, *, seek_secure: bool) -> None:
        """Look for a better image than `known`, which is being shown; `seek_secure`: for one that came by https."""
        if visit.came_from_us:
            return
        if seek_secure:
            self._seek_secure(source, info, known, visit)
        elif self._wants_newer(source, info, known) and self._may_ask(source, visit):
            settle = partial(self._trials.settle_refresh, known)
            if self._begin(f"refresh.{known.key}", source, info, settle, known=known):
                self.note_asked(source)

    def _seek_secure(self, source: Source, info: SourceInfo, known: Record, visit: Visit) -> None:
        route = None if known.key in self._sought else self._routes.find_secure(source, info)
        if route is not None and self._may_ask(source, visit):
            self._sought[known.key] = True
            settle = partial(self._trials.settle_better, known)
            self._begin(f"secure.{known.key}", source, info, settle, routes=(route,))

    def _wants_newer(self, source: Source, info: SourceInfo, known: Record) -> bool:
        """Whether a link was signed anew, verifiably, to an image that the operator wants to be looked after."""
        if self._rules.refresh is None or not self._rules.refresh.match(source.host):
            return False
        # The shape of a signature alone can be written by a stranger: its host has to be known to check it.
        if not (info.permission and info.enforced_by_host and info.enforced and info.is_fresh(self._to.clock())):
            return False
        if known.validator is None or not known.temporary or known.provider != info.provider:
            return False
        return fingerprint(source) not in self._asked

    def _may_ask(self, source: Source, visit: Visit) -> bool:
        """Whether this visitor may have its origin asked, and the origin did not fail lately."""
        if judge(source, self._policy) is not None or self._failures.find(source) is not None:
            return False
        try:
            visit.insist()
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
        """Begin a fill without readers, under the claim `name`; `False`: there is one."""
        if self._claims is not None and name not in self._flights and self._claims.take(name) is not None:
            return False
        fill = partial(
            Fill,
            source,
            info,
            self._to,
            self._tower,
            routes=routes,
            settle=settle,
            unreachable=self._routes.note_unreachable,
            known=known,
            over=partial(self._release, name),
        )
        return self._flights.join(name, fill)[1]

    def _release(self, name: str, *, kept: bool) -> None:
        if self._claims is not None:
            self._claims.release(name, kept=kept)
