"""
The response cache: the encoded headers of hits, by request target.

The handlers (`images.py`, `responses.py`) make the response to a hit once. The cache stores it under the raw request
target, and answers later requests for the same target after one lookup: no parsing, no task, no SQL, one write.

Each of these ends the use of a cached response:
- a removal, a replacement or the storing of an image: `invalidate` evicts the responses of its key;
- the eviction of its bytes from memory, because they were removed, altered or not requested: the entry of the memory
  cache is then empty;
- the end of a signature (`CachedResponse.permitted_until`);
- the end of the trust in all caches (`images/cache_trust.py`): the cache keeps its responses, and answers nothing;
- `FRESHNESS_LIFETIME_S`, for any other change in this process or another one.

The response to a target whose picture has a negotiated format is stored once for each class of `Accept`
(`response_variants.py`); any other response takes one lookup.

A handler answers a request without an entry, so the cache may evict any entry at any time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.images.cache_trust import CacheTrust
from imgkeep.web.fastpath.response_variants import split_variant
from imgkeep.web.image_headers import YEAR_S

if TYPE_CHECKING:
    from imgkeep.storage.local.memory_cache import CacheEntry
    from imgkeep.web.fastpath.request_head import RequestFields

FRESHNESS_LIFETIME_S: Final = 600
"""
Maximum time for which a response is fresh. After it, a handler marks the image as used, and reads changes that no
notice has reported.
"""
BYTES_MAX: Final = 134_217_728
"""Maximum memory of all entries: some 120,000 of them."""
TARGETS_MAX: Final = 256
"""
Maximum number of targets of one key. Any client can invent links to an image, which must neither evict the responses of
other images nor make `invalidate` slow.
"""
ENTRY_BYTES: Final = 820
"""Memory of an entry besides its target and its fields: itself, its handle, two places in dictionaries (measured)."""

VARIANT_BYTES: Final = 400
"""Memory of the dictionary in which a response that depends on `Accept` is found, besides its target."""


@dataclass(slots=True)
class CachedResponse:
    """
    The response to one request target.

    Attributes:
        route: The route for logs and metrics.
        key: The key of the record or, for a permanent URL, the name of the object.
        fields: The header fields that differ between responses, encoded.
        media_type: The field `Content-Type`, encoded; a 304 does not have it.
        cache_entry: The bytes of the image.
        fresh_until: The time, by the timer, from which a handler makes the response again.
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
    """
    Responses by request target; the least recently used one is evicted first.

    `trust`: until when it answers; `None`: always.
    """

    def __init__(self, bytes_max: int = BYTES_MAX, trust: CacheTrust | None = None) -> None:
        self.bytes = 0
        self._trust = trust or CacheTrust(lambda: 0.0)
        self._bytes_max = bytes_max
        self._responses: OrderedDict[bytes, CachedResponse] = OrderedDict()
        self._targets: dict[str, list[bytes]] = {}
        """The targets of each key: `invalidate` removes them together."""
        self._variants: dict[bytes, dict[bytes, bytes]] = {}
        """By target and class of clients, the names of responses that depend on `Accept`."""

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, target: bytes, response: CachedResponse) -> None:
        """Store the response to a request target, or to one class of clients, by its name."""
        self._remove(target)
        together = self._targets.get(response.key, [])
        if len(together) >= TARGETS_MAX:
            self._remove(together[0])
        self._responses[target] = response
        plain, client_class = split_variant(target)
        if client_class is not None:
            self._variants.setdefault(plain, {})[client_class] = target
        self._targets.setdefault(response.key, []).append(target)
        self.bytes += _weight(target, response)
        while self.bytes > self._bytes_max:
            self._remove(next(iter(self._responses)))

    def invalidate(self, key: str) -> None:
        """Remove every response for a key, because the record of the key has changed."""
        for target in list(self._targets.get(key, ())):
            self._remove(target)

    def clear(self) -> None:
        """Remove every response, because any record may have changed."""
        self._responses.clear()
        self._targets.clear()
        self._variants.clear()
        self.bytes = 0

    def find(self, target: bytes, now: float, fields: RequestFields | None = None) -> CachedResponse | None:
        """Return the response to a request target, if there is one that is fresh at `now`, by the timer."""
        response = self._responses.get(target)
        if response is None:
            variants = self._variants.get(target)
            if variants is None or fields is None:
                return None
            target = variants.get(fields.client_class, b"")
            response = self._responses.get(target)
            if response is None:
                return None
        if now >= response.fresh_until:
            self._remove(target)
            return None
        if now >= self._trust.until:
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
        plain, client_class = split_variant(target)
        if client_class is not None:
            variants = self._variants[plain]
            del variants[client_class]
            if not variants:
                del self._variants[plain]


def _weight(target: bytes, response: CachedResponse) -> int:
    variant_bytes = VARIANT_BYTES + len(target) if b" " in target else 0
    return ENTRY_BYTES + len(target) + len(response.fields) + variant_bytes
