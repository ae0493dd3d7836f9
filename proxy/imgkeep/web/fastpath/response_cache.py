"""
The response cache: what was decided once for a request target is not decided again.

The handlers (`images.py`, `responses.py`) decide a hit once. The cache keeps their decision under the raw request
target, and later requests for it are answered from one look-up: no parsing, no task, no SQL, one write.

What may change a response removes it:
- a removal or a replacement of an image, or its arrival in the store: `invalidate`, by its key;
- bytes that left memory, because they were removed, altered or not requested: the entry of the memory cache is empty;
- the end of a signature (`CachedResponse.permitted_until`);
- anything else, in this process or another: no response stays for longer than `FRESHNESS_LIFETIME_S`.

A request without an entry goes to a handler, so it is never wrong to lose one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.web.image_headers import YEAR_S

if TYPE_CHECKING:
    from imgkeep.storage.local.memory_cache import CacheEntry

FRESHNESS_LIFETIME_S: Final = 600
"""
Maximum time for which a response stays here. A handler then notes that the image is in use, and sees changes of which
no process was told.
"""
BYTES_MAX: Final = 134_217_728
"""Maximum memory of all entries: some 120,000 of them."""
TARGETS_MAX: Final = 256
"""
Maximum number of targets of one key. Any client can invent links to an image: they must neither evict others nor make
`invalidate` slow.
"""
ENTRY_BYTES: Final = 820
"""Memory of an entry besides its target and its fields: itself, its handle, two places in dictionaries (measured)."""


@dataclass(slots=True)
class CachedResponse:
    """
    The response to one request target.

    Attributes:
        route: The route that it counts as.
        key: The key of the record or, for a permanent URL, the name of the object.
        fields: The header fields that are its own, encoded.
        media_type: The field that a 304 goes without, encoded.
        cache_entry: The bytes of the image.
        fresh_until: When a handler decides anew, by the timer.
        permitted_until: When the permission to see it ends, in epoch seconds; `None`: never.
        max_age_s: For how long a client may keep it; a year means for ever.
        is_svg: Whether it is an SVG image, which has a policy of its own.
    """

    route: str
    key: str
    etag: str
    fields: bytes
    media_type: bytes
    size: int
    cache_entry: CacheEntry
    fresh_until: float
    permitted_until: int | None
    max_age_s: int = YEAR_S
    is_svg: bool = False


class ResponseCache:
    """Responses by request target; the least recently used one is evicted first."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._responses: OrderedDict[bytes, CachedResponse] = OrderedDict()
        self._targets: dict[str, list[bytes]] = {}
        """By key: what `invalidate` removes together."""

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, target: bytes, response: CachedResponse) -> None:
        """Keep the response to a request target."""
        self._remove(target)
        together = self._targets.get(response.key, [])
        if len(together) >= TARGETS_MAX:
            self._remove(together[0])
        self._responses[target] = response
        self._targets.setdefault(response.key, []).append(target)
        self.bytes += _weight(target, response)
        while self.bytes > self._bytes_max:
            self._remove(next(iter(self._responses)))

    def invalidate(self, key: str) -> None:
        """Remove every response that shows what a key stands for, because that has changed."""
        for target in list(self._targets.get(key, ())):
            self._remove(target)

    def find(self, target: bytes, now: float) -> CachedResponse | None:
        """Return the response to a request target, if there is one that is fresh at `now`, by the timer."""
        response = self._responses.get(target)
        if response is None:
            return None
        if now >= response.fresh_until:
            self._remove(target)
            return None
        self._responses.move_to_end(target)
        return response

    def _remove(self, target: bytes) -> None:
        response = self._responses.pop(target, None)
        if response is None:
            return
        self.bytes -= _weight(target, response)
        together = self._targets[response.key]
        together.remove(target)
        if not together:
            del self._targets[response.key]


def _weight(target: bytes, response: CachedResponse) -> int:
    return ENTRY_BYTES + len(target) + len(response.fields)
