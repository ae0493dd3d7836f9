"""
NegativeCache, remembered for a short time by cause, so that a dead link does not cost its origin a request per page view.

They stand under the exact source URL and not under the identity: a freshly signed link may work. Whoever asks looks
for the image first, so an image stored in the meantime always wins.
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
"""About 1 kB each: 10 MB when a crawler tries dead links."""
IMAGES_BYTES_MAX: Final = 16_777_216
"""Maximum size of all pictures that came with remembered failures (`fetch.show_errors`); 16 of the largest."""

_SECONDS: Final[tuple[tuple[type[ImgkeepError], int], ...]] = (
    (SourceExpired, 300),  # the link does not come back to life
    (Removed, 300),  # it brings a picture that was removed
    (SourceNotFound, 120),  # may still be uploaded
    (OriginRefused, 60),
    (NotAnImage, 60),
    (TooLarge, 60),
    (SourceForbidden, 30),  # a name may be mended
    (OriginTimeout, 5),
)
TOO_MANY_REQUESTS_S: Final = 60
"""
Whatever a 429 asks for. It may be meant for one client that provoked it, and others wait under the
same link. A job that waits for its own link believes the origin (`core.headers.RETRY_AFTER_MAX_S`).
"""
SERVER_ERROR_S: Final = 5
"""For a 5xx. A connection that broke is not remembered at all: the next request is the retry."""


def failure_ttl_s(error: ImgkeepError) -> int:
    """Return for how many seconds the same link is answered with the same error; 0: not at all."""
    if isinstance(error, OriginError) and error.origin_status == 429 and error.retry_after_s is not None:
        return min(error.retry_after_s, TOO_MANY_REQUESTS_S)
    for cause, seconds in _SECONDS:
        if isinstance(error, cause):
            return seconds
    return SERVER_ERROR_S if isinstance(error, OriginError) and error.origin_status is not None else 0


class NegativeCache:
    """Remembered failures; `timer` gives monotonic seconds."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._errors: TLRUCache[bytes, ImgkeepError] = TLRUCache(
            FAILURES_MAX, ttu=lambda _, error, now: now + failure_ttl_s(error), timer=timer
        )
        self._pictures: LRUCache[bytes, tuple[str, bytes]] = LRUCache(
            IMAGES_BYTES_MAX, getsizeof=lambda picture: len(picture[1])
        )

    def remember(self, source: Source, error: ImgkeepError) -> None:
        if failure_ttl_s(error) > 0:
            # A copy, for what was raised holds the whole request alive by its traceback.
            told = copy.copy(error)
            mark = fingerprint(source)
            self._pictures.pop(mark, None)
            if isinstance(told, OriginError) and told.picture is not None:
                self._pictures[mark] = told.picture
                told.picture = None
            self._errors[mark] = told

    def forget_removals(self) -> None:
        """Forget which links brought removed bytes: a removal was undone, and which links it concerned is not known."""
        for link in [link for link, error in self._errors.items() if isinstance(error, Removed)]:
            self._errors.pop(link, None)

    def find(self, source: Source) -> ImgkeepError | None:
        """Return the remembered failure as a fresh copy that can be raised."""
        if not self._errors:
            return None
        mark = fingerprint(source)
        error = self._errors.get(mark)
        if error is None:
            return None
        told = copy.copy(error)
        if isinstance(told, OriginError):
            told.picture = self._pictures.get(mark)
        return told


def fingerprint(source: Source) -> bytes:
    """Return a hash of the link, so that no credential lies in memory longer than its request."""
    return sha256(source.url.encode()).digest()
