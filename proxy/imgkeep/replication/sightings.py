"""What a process knows of which objects are in the primary, so that it need not ask again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachetools import TTLCache

if TYPE_CHECKING:
    from collections.abc import Callable

SEEN_MAX: Final = 100_000
"""Maximum number of names that the primary was seen to have: 200 bytes each, 20 MB."""
SEEN_TTL_S: Final = 3600
"""Time for which this node relies on an object that it saw in the primary: an operator may empty the bucket."""
ABSENT_TTL_S: Final = 30
"""
Time for which a permanent URL without an object causes no further request to the primary: an untrusted client can
invent such URLs. This node finds an object that it puts itself at once. It finds an object that another node puts
after this time at the latest.
"""


class Sightings:
    """
    The objects that the primary recently had, and those that it had not.

    Attributes:
        present: Names that the primary was seen to have.
        absent: Names that it was seen not to have.
        nowhere: Names of these that no other node has either.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self.present: TTLCache[str, bool] = TTLCache(SEEN_MAX, SEEN_TTL_S, timer=timer)
        self.absent: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        self.nowhere: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        self._recently_put: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        """Names that this process has put recently."""

    def begin_put(self, name: str) -> None:
        """Note that a put of this process has begun: answers that are older count no more."""
        self.absent.pop(name, None)
        self.nowhere.pop(name, None)
        self._recently_put[name] = True

    def end_put(self, name: str) -> None:
        """Note that the primary has taken an object of this process."""
        self.present[name] = self._recently_put[name] = True

    def note_present(self, name: str) -> None:
        self.absent.pop(name, None)
        self.nowhere.pop(name, None)
        self.present[name] = True

    def note_answer(self, name: str, *, is_there: bool) -> None:
        """Note what the primary said of an object."""
        if is_there:
            self.present[name] = True
            return
        self.present.pop(name, None)
        # The answer may be older than a put of this process that ended before the answer came.
        if name not in self._recently_put:
            self.absent[name] = True

    def note_nowhere(self, name: str) -> None:
        """Note that neither the primary nor another node has an object."""
        if name not in self._recently_put:
            self.nowhere[name] = True

    def forget(self, name: str) -> None:
        """Forget that the primary has an object."""
        self.present.pop(name, None)
