"""
Negative cache: failed fetches in memory for a short time, so that a dead link does not cost its origin a request per
page view. The cause of a failure decides how long.

The key of an entry is the exact source URL, not the identity: a link with a new signature may work. The service looks
for the image first, so an image that was stored in the meantime always wins.
"""

from __future__ import annotations

import copy
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TLRUCache

from imgkeep.core.errors import (
    ImgkeepError,
    NotAnImage,
    OriginError,
    OriginRefused,
    OriginTimeout,
    Removed,
    SourceExpired,
    SourceForbidden,
    SourceNotFound,
    TooLarge,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source

FAILURES_MAX: Final = 10_000
"""Maximum number of failures, about 1 kB each: 10 MB when a crawler tries dead links."""
IMAGES_BYTES_MAX: Final = 16_777_216
"""Maximum size of all images that came with failures (`fetch.show_errors`); 16 of the largest."""

_TTL_S: Final[tuple[tuple[type[ImgkeepError], int], ...]] = (
    (SourceExpired, 300),  # an expired link stays expired
    (Removed, 300),  # an operator removed the image of the link
    (SourceNotFound, 120),  # may still be uploaded
    (OriginRefused, 60),
    (NotAnImage, 60),
    (TooLarge, 60),
    (SourceForbidden, 30),  # the owner of the host may correct its DNS records
    (OriginTimeout, 5),
)
TOO_MANY_REQUESTS_S: Final = 60
"""
Maximum time for a 429, whatever it asks for: it may be meant for one client that provoked it, and others wait under the
same link. A job that waits for its own link believes the origin (`core.http_headers.RETRY_AFTER_MAX_S`).
"""
SERVER_ERROR_S: Final = 5
"""Time for a 5xx. A connection that broke is not remembered at all: the next request is the retry."""


def failure_ttl_s(error: ImgkeepError) -> int:
    """Return for how many seconds the same link is answered with the same error; 0: not at all."""
    if isinstance(error, OriginError) and error.origin_status == 429 and error.retry_after_s is not None:
        return min(error.retry_after_s, TOO_MANY_REQUESTS_S)
    for cause, seconds in _TTL_S:
        if isinstance(error, cause):
            return seconds
    return SERVER_ERROR_S if isinstance(error, OriginError) and error.origin_status is not None else 0


class NegativeCache:
    """A short memory of failed fetches; `timer` gives monotonic seconds."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._errors: TLRUCache[bytes, tuple[ImgkeepError, float]] = TLRUCache(
            FAILURES_MAX, ttu=lambda _, entry, now: now + entry[1], timer=timer
        )
        """Failures, and for how many seconds each is remembered."""
        self._images: LRUCache[bytes, tuple[str, bytes]] = LRUCache(
            IMAGES_BYTES_MAX, getsizeof=lambda image: len(image[1])
        )

    def add(self, source: Source, error: ImgkeepError, ttl_s: float | None = None) -> None:
        """Remember a failure for as long as its cause tells, or as another node, which had it first, still does."""
        if ttl_s is None:
            ttl_s = failure_ttl_s(error)
        if ttl_s > 0:
            # A copy, for the traceback of what was raised keeps the whole request alive.
            error = copy.copy(error)
            link = hash_link(source)
            self._images.pop(link, None)
            if isinstance(error, OriginError) and error.image is not None:
                self._images[link] = error.image
                error.image = None
            self._errors[link] = error, ttl_s

    def forget_removals(self) -> None:
        """Forget which links brought removed bytes: an operator undid a removal, and its links are not known."""
        for link in [link for link, (error, _) in self._errors.items() if isinstance(error, Removed)]:
            self._errors.pop(link, None)

    def find(self, source: Source) -> ImgkeepError | None:
        """Return the remembered failure as a fresh copy that can be raised."""
        if not self._errors:
            return None
        link = hash_link(source)
        known = self._errors.get(link)
        if known is None:
            return None
        error = copy.copy(known[0])
        if isinstance(error, OriginError):
            error.image = self._images.get(link)
        return error


def hash_link(source: Source) -> bytes:
    """Return a hash of the link, so that no credential lies in memory longer than its request."""
    return sha256(source.url.encode()).digest()
