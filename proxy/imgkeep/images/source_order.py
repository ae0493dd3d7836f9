"""
The order of the links by which an image is fetched: https first where http and https share a key.

Rules:
- The fill asks over plain http only where https does not work: no connection, no certificate, no answer, or no image.
- For some minutes the fill asks a host without https over http at once, so that it costs one failed connect in that
  time.
- The fill never asks for an https link over http.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachetools import TTLCache

from imgkeep.core.confirmation import https_source
from imgkeep.core.policy import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source, SourceInfo

HOSTS_MAX: Final = 8192
"""Maximum number of hosts without https."""
PLAIN_HTTP_TTL_S: Final = 300
"""Time for which a fill asks a host that could not be reached by https over plain http only."""


class SourceOrder:
    """Chooses links, and remembers hosts that cannot be reached by https; `timer` gives monotonic seconds."""

    def __init__(self, policy: Policy, timer: Callable[[], float]) -> None:
        self._policy = policy
        self._without_https: TTLCache[str, bool] = TTLCache(HOSTS_MAX, PLAIN_HTTP_TTL_S, timer=timer)

    def find(self, source: Source, info: SourceInfo) -> Sequence[Source]:
        """Return the links to fetch by, in this order."""
        twin = self.find_secure(source, info)
        return (source,) if twin is None else (twin, source)

    def find_secure(self, source: Source, info: SourceInfo) -> Source | None:
        """Return the https link to fetch by in the place of an http link; `None`: it would not help now."""
        if source.scheme == "https" or source.host in self._without_https:
            return None
        twin = https_source(source, info)
        return None if twin is None or judge(twin, self._policy) is not None else twin

    def note_unreachable(self, source: Source) -> None:
        """Remember that a host cannot be reached by https."""
        self._without_https[source.host] = True
