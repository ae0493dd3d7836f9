"""
Refreshes: background fetches that look for a newer image than the stored one, or for the same image over https.

Rules:
- A newer image replaces a stored one only at the hosts that the operator names, and only by a link whose service
  refuses a wrong signature with an error, that has not ended, and that was signed anew.
- An image that came over plain http is fetched again over https, at most once in some minutes, where both links share
  a key.
- Only a whole image replaces a stored one, and the client never waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.images.fill_starter import HTTPS_REFRESH_PREFIX, REFRESH_PREFIX
from imgkeep.images.negative_cache import hash_link
from imgkeep.images.source_order import PLAIN_HTTP_TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.host_patterns import Globs
    from imgkeep.core.records import Key, Record, Source, SourceInfo
    from imgkeep.images.confirmer import Confirmer
    from imgkeep.images.fill_starter import FillStarter
    from imgkeep.images.request_context import RequestContext

ASKED_LINKS_MAX: Final = 65_536
"""Maximum number of links that are known to have been fetched, with `sources.refresh`; 150 bytes each, 10 MB."""
HTTPS_TRIED_MAX: Final = 16_384
"""Maximum number of keys that are known to have been fetched over https recently."""


@dataclass(frozen=True, slots=True)
class SourceRules:
    """The settings of refreshes and redirects: `sources.permanent`, and the hosts of `sources.refresh`."""

    redirect_permanent: bool = False
    refresh: Globs | None = None


class Refresher:
    """Starts the fills that look for better images. One per process."""

    def __init__(
        self, rules: SourceRules, fills: FillStarter, confirmer: Confirmer, timer: Callable[[], float]
    ) -> None:
        self._rules = rules
        self._fills = fills
        self._confirmer = confirmer
        self._asked: LRUCache[bytes, bool] = LRUCache(ASKED_LINKS_MAX)
        """Hashes of the links that were fetched."""
        self._https_tried: TTLCache[Key, bool] = TTLCache(HTTPS_TRIED_MAX, PLAIN_HTTP_TTL_S, timer=timer)

    def note_asked(self, source: Source) -> None:
        """Remember that a link is fetched."""
        if self._rules.refresh is not None:
            self._asked[hash_link(source)] = True

    def start_if_due(
        self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext, *, seek_https: bool
    ) -> None:
        """Start a fill that may replace `known`, which the client is shown; `seek_https`: by the https link."""
        if seek_https:
            self._start_over_https(source, info, known, request_context)
        elif self._wants_newer(source, info, known) and self._fills.may_start(source, request_context):
            put = partial(self._confirmer.put_refreshed, known)
            name = f"{REFRESH_PREFIX}{known.key}"
            if self._fills.start_in_background(name, source, info, sources=(source,), put=put, known=known):
                self.note_asked(source)

    def _start_over_https(
        self, source: Source, info: SourceInfo, known: Record, request_context: RequestContext
    ) -> None:
        twin = None if known.key in self._https_tried else self._fills.source_order.find_secure(source, info)
        if twin is not None and self._fills.may_start(source, request_context):
            self._https_tried[known.key] = True
            put = partial(self._confirmer.put_secure, known)
            name = f"{HTTPS_REFRESH_PREFIX}{known.key}"
            self._fills.start_in_background(name, source, info, sources=(twin,), put=put)

    def _wants_newer(self, source: Source, info: SourceInfo, known: Record) -> bool:
        """Tell whether a link was signed anew, verifiably, to an image that the operator wants refreshed."""
        if self._rules.refresh is None or not self._rules.refresh.match(source.host):
            return False
        # An untrusted client can invent a signature of the right form, so the host has to be known to check signatures.
        is_verified = info.permission and info.enforced_by_host and info.enforced
        if not (is_verified and info.is_fresh(self._fills.dependencies.clock())):
            return False
        if known.validator is None or not known.temporary or known.provider != info.provider:
            return False
        return hash_link(source) not in self._asked
