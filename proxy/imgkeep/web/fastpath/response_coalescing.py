"""
Coalescing of responses: concurrent requests for one target share one handler and its response.

The first request leads: a handler works for it. A request for the same bytes that arrives meanwhile and has no
conditions follows: it costs an entry in a list and no handler of its own. It gets the leader's response, be that an
image that still grows or a failure. Where the response is the leader's alone, each follower asks for itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from imgkeep.images.request_context import CacheStatus
from imgkeep.web.fastpath.response_variants import split_variant
from imgkeep.web.image_headers import CACHE_STATUS
from imgkeep.web.request_response import BodyRange, HttpResponse

if TYPE_CHECKING:
    from imgkeep.web.request_state import RequestLog

PER_CLIENT_STATUSES: Final = frozenset({429})
"""Statuses of responses that depend on what the client did before."""

Follower: TypeAlias = Callable[["HttpResponse | None", "RequestLog"], None]
"""Is called with the response and its leader's log; with `None` if the follower has to ask for itself."""

log = logging.getLogger(__name__)


class SharedResponse:
    """A response that a handler is working on, and the followers that wait for it."""

    def __init__(self, target: bytes, request_log: RequestLog) -> None:
        self.target = target
        self._request_log = request_log
        self._followers: list[Follower] = []
        self._published: asyncio.Future[None] | None = None
        self._is_published = False
        self._response: HttpResponse | None = None
        self._is_for_followers = False
        """Whether `_response` is already what followers get. Most leaders have none, and nothing is made for them."""

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def is_open(self) -> bool:
        """Whether a request may still follow."""
        return not self._is_published or (self._response is not None and is_growing(self._response))

    @property
    def published(self) -> asyncio.Future[None]:
        """Done when the followers have their response."""
        if self._published is None:
            self._published = asyncio.get_running_loop().create_future()
            if self._is_published:
                self._published.set_result(None)
        return self._published

    def follow(self, follower: Follower) -> None:
        """Call `follower` with the response: at once if that is published, else later."""
        if self._is_published:
            follower(self._response_for_followers(), self._request_log)
        else:
            self._followers.append(follower)

    def publish(self, response: HttpResponse | None) -> None:
        """Give the leader's response to the followers; `None`: there will be none."""
        if self._is_published:
            return
        self._is_published = True
        self._response = response
        followers, self._followers = self._followers, []
        if self._published is not None:
            self._published.set_result(None)
        for follower in followers:
            try:
                follower(self._response_for_followers(), self._request_log)
            except Exception:  # one follower must not cost the others their response
                log.exception("unforeseen error")

    def _response_for_followers(self) -> HttpResponse | None:
        if not self._is_for_followers:
            self._is_for_followers = True
            is_shared = self._response is not None and not self._request_log.is_for_client
            self._response = _make_shareable(self._response) if self._response is not None and is_shared else None
        return self._response


class SharedResponses:
    """The shared responses of a server, by request target."""

    def __init__(self) -> None:
        self._by_target: dict[bytes, SharedResponse] = {}

    def __len__(self) -> int:
        return len(self._by_target)

    @property
    def followers(self) -> int:
        """Number of requests that wait for the response of another."""
        return sum(map(len, self._by_target.values()))

    def find(self, target: bytes) -> SharedResponse | None:
        """Return the response that a request for the target may follow; `None` if there is none, or no longer."""
        shared = self._by_target.get(target)
        return shared if shared is not None and shared.is_open else None

    def begin(self, target: bytes, request_log: RequestLog) -> SharedResponse:
        """Begin a response that others may follow. `request_log` is its leader's."""
        shared = self._by_target[target] = SharedResponse(target, request_log)
        return shared

    def publish(self, shared: SharedResponse, response: HttpResponse | None, *, varies: bool = False) -> None:
        """
        Give followers the leader's response, `None` if it has none. Requests may follow a growing image until `end`.

        `varies`: it depends on `Accept`. Then clients of another class, which the target did not tell apart, have to
        ask for themselves.
        """
        if varies and split_variant(shared.target)[1] is None:
            response = None
        if response is None or not is_growing(response):
            self.end(shared)
        shared.publish(response)

    def end(self, shared: SharedResponse) -> None:
        """Let no more requests follow."""
        if self._by_target.get(shared.target) is shared:
            del self._by_target[shared.target]


def is_growing(response: HttpResponse) -> bool:
    """Tell whether the body of a response is an image that is still being fetched."""
    body = response.body
    return isinstance(body, BodyRange) and body.growing is not None and not body.growing.ended


def _make_shareable(response: HttpResponse) -> HttpResponse | None:
    """Return what followers get in the place of the leader's response; `None`: they have to ask for themselves."""
    if not isinstance(response.body, BodyRange):
        return None if response.status in PER_CLIENT_STATUSES else response
    if not is_growing(response):
        return None
    if response.headers["Cache-Status"] != CACHE_STATUS[CacheStatus.STORED]:
        return response
    return replace(response, headers={**response.headers, "Cache-Status": CACHE_STATUS[CacheStatus.COLLAPSED]})
