"""
Crowds: many clients who ask for the same target at once get the one answer that is on its way.

The first one leads: a handler is at work for it. Whoever asks for the same bytes meanwhile, with a request that has no
conditions, follows: it costs a place in a list, not a handler of its own, and it gets the leader's answer, be it an
image that is still growing or a failure. Where the answer is the leader's alone, followers ask for themselves.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.images.context import CacheStatus
from imgkeep.web.image_headers import CACHE_STATUS
from imgkeep.web.messages import BodyRange

if TYPE_CHECKING:
    from imgkeep.web.context import RequestLog
    from imgkeep.web.messages import HttpResponse

PER_CLIENT_STATUSES: Final = frozenset({429})
"""What is told to one client because of what it did before."""


log = logging.getLogger(__name__)


class Follower(Protocol):
    def follow(self, answer: HttpResponse | None, request_log: RequestLog) -> None:
        """Take the answer, and what its leader noted, or ask for yourself."""


class SharedResponse:
    """Who waits for one answer. `request_log` are the leader's."""

    def __init__(self, request_log: RequestLog) -> None:
        self._over: asyncio.Future[None] | None = None
        self._is_led = False
        self._request_log = request_log
        self._followers: list[Follower] = []
        self._answer: HttpResponse | None = None
        self._is_shared = False
        """Whether `_answer` is what others get: most leaders are alone, and nobody asks."""

    @property
    def over(self) -> asyncio.Future[None]:
        """Done when nobody waits any more. Most leaders are alone, and need none."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            if self._is_led:
                self._over.set_result(None)
        return self._over

    def join(self, follower: Follower) -> bool:
        """Wait for the answer, or get it at once; `False`: it is too late for that."""
        if self._is_led:
            if self._answer is None or not _is_growing(self._answer):
                return False
            follower.follow(self._shared(), self._request_log)
        else:
            self._followers.append(follower)
        return True

    def lead(self, answer: HttpResponse | None) -> None:
        """Give the leader's answer to those who follow; `None`: there will be none."""
        if self._is_led:
            return
        self._is_led = True
        self._answer = answer
        followers, self._followers = self._followers, []
        if self._over is not None:
            self._over.set_result(None)
        for follower in followers:
            try:
                follower.follow(self._shared(), self._request_log)
            except Exception:  # one of them must not cost the others their answer
                log.exception("unforeseen error")

    def _shared(self) -> HttpResponse | None:
        if not self._is_shared:
            self._is_shared = True
            self._answer = None if self._answer is None else _for_others(self._answer)
        return self._answer


def _for_others(answer: HttpResponse) -> HttpResponse | None:
    """Return what others who asked for the same are answered; `None`: they have to ask for themselves."""
    if not isinstance(answer.body, BodyRange):
        return None if answer.status in PER_CLIENT_STATUSES else answer
    if not _is_growing(answer):
        return None
    if answer.headers["Cache-Status"] != CACHE_STATUS[CacheStatus.STORED]:
        return answer
    return replace(answer, headers={**answer.headers, "Cache-Status": CACHE_STATUS[CacheStatus.COLLAPSED]})


def _is_growing(answer: HttpResponse) -> bool:
    part = answer.body
    return isinstance(part, BodyRange) and part.growing is not None and not part.growing.ended
