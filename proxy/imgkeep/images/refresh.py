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

from imgkeep.images.negative_cache import hash_link
from imgkeep.images.source_order import PLAIN_HTTP_TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.host_patterns import Globs
    from imgkeep.core.records import Key, Record, Source, SourceInfo
    from imgkeep.images.confirmation import Confirmer
    from imgkeep.images.context import RequestContext
    from imgkeep.images.fill_starter import FillStarter

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

    def __init__(self, rules: Rules, fills: FillStarter, confirmer: Confirmer, timer: Callable[[], float]) -> None:
        self._rules = rules
        self._fills = fills
        self._confirmer = confirmer
        self._asked: LRUCache[bytes, bool] = LRUCache(LINKS_MAX)
        """Fingerprints of the links that their origins were asked by."""
        self._sought: TTLCache[Key, bool] = TTLCache(SOUGHT_MAX, PLAIN_HTTP_TTL_S, timer=timer)

    def note_asked(self, source: Source) -> None:
        """An origin is asked by a link."""
        if self._rules.refresh is not None:
            self._asked[hash_link(source)] = True

    def look(
        self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext, *, seek_secure: bool
    ) -> None:
        """Look for a better image than `known`, which is being shown; `seek_secure`: for one that came by https."""
        if seek_secure:
            self._seek_secure(source, info, known, request_context)
        elif self._wants_newer(source, info, known) and self._fills.may_start(source, request_context):
            put = partial(self._confirmer.settle_refresh, known)
            name = f"refresh.{known.key}"
            if self._fills.start_in_background(name, source, info, sources=(source,), put=put, known=known):
                self.note_asked(source)

    def _seek_secure(self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext) -> None:
        secure = None if known.key in self._sought else self._fills.source_order.find_secure(source, info)
        if secure is not None and self._fills.may_start(source, request_context):
            self._sought[known.key] = True
            put = partial(self._confirmer.settle_https, known)
            self._fills.start_in_background(f"secure.{known.key}", source, info, sources=(secure,), put=put)

    def _wants_newer(self, source: Source, info: SourceInfo, known: Record) -> bool:
        """Whether a link was signed anew, verifiably, to an image that the operator wants to be looked after."""
        if self._rules.refresh is None or not self._rules.refresh.match(source.host):
            return False
        # The shape of a signature alone can be written by a stranger: its host has to be known to check it.
        if not (
            info.permission
            and info.enforced_by_host
            and info.enforced
            and info.is_fresh(self._fills.dependencies.clock())
        ):
            return False
        if known.validator is None or not known.temporary or known.provider != info.provider:
            return False
        return hash_link(source) not in self._asked
