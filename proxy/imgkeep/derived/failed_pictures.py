"""
The memory of failures: pictures that could not be made, so that no request makes a process fail in the same way again.

An image that has ended several derive processes is not given to another one, whatever its options: any client could
invent more of them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from cachetools import TTLCache

from imgkeep.core.errors import DeriveFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.errors import ImgkeepError
    from imgkeep.core.records import Digest

TTL_S: Final = 600
"""Time for which a failure is remembered: another version of libvips, or more memory, may come with a restart only."""
FAILURES_MAX: Final = 10_000
"""Maximum number of failures; some 500 bytes each."""
CRASHES_MAX: Final = 3
"""Number of processes that an image may end before imgkeep makes no more pictures of it."""


class FailedPictures:
    """The pictures that failed a moment ago. `timer` gives monotonic seconds."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._errors: TTLCache[PictureName, ImgkeepError] = TTLCache(FAILURES_MAX, TTL_S, timer=timer)
        self._crashes: TTLCache[Digest, int] = TTLCache(FAILURES_MAX, TTL_S, timer=timer)

    def __len__(self) -> int:
        return len(self._errors)

    def require_none(self, name: PictureName) -> None:
        """
        Raise the remembered failure of a picture.

        Raises:
            DeriveFailed, NotSupported: It failed a moment ago.
        """
        error = self._errors.get(name)
        if error is not None:
            raise copy.copy(error)  # each request has a traceback of its own
        if self._crashes.get(name.digest, 0) >= CRASHES_MAX:
            raise DeriveFailed("the image has ended several processes: ask for the original, or retry in ten minutes")

    def note(self, name: PictureName, error: ImgkeepError, *, crashed: bool) -> None:
        """Remember a failure; `crashed`: it ended the process."""
        error = copy.copy(error)
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._errors[name] = error
        if crashed:
            self._crashes[name.digest] = self._crashes.get(name.digest, 0) + 1
