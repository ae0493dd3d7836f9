"""
Leases among the nodes of a cluster: rows of a table that all nodes share, so that one of them runs the fill of a key.

A lease of a worker among those of its machine (`cluster/workers/leases.py`) comes first and stays what it is. So within
a node no row is needed, and a member may take over a row of its own node: it has the lease on that machine.

A row is in one of three states, each with an end by the database's clock:

| state | another node that requests the lease |
|---|---|
| a fill runs: each heartbeat of the member moves the end | follows the member |
| the image is stored: until the end of the grace period | asks the member, and finds the image |
| the fill failed: as long as the negative cache remembers that | has the failure, by the same link; or the lease |

Rules:
- A request goes at once while few fills run; else those of ten milliseconds share a statement, while their lookups run.
  Releases wait longer for each other, because other nodes may see the old state meanwhile; only where no image is
  stored they go at once.
- The token of a row is of one lease alone: a late release ends no other one.
- A row is an optimisation. A node that cannot ask, or cannot reach the holder, fetches by itself: two fetches are
  better than none. `unleased` counts such fills.
- After a fault of the database the member deletes all its rows but those of running fills, so no release is lost, and
  none has to wait in memory for a database that is away.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

from cachetools import TTLCache

from imgkeep.cluster.nodes.lease_table import LeaseTable, Release
from imgkeep.core.errors import StorageError
from imgkeep.images.interfaces import LinkFailure
from imgkeep.images.request_context import HeldByPeer

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.cluster.nodes.membership import Membership
    from imgkeep.database.session import DatabaseSession
    from imgkeep.images.interfaces import Leases

ANSWER_TIMEOUT_S: Final = 1.0
"""Timeout for the answer to a request, from the request on: a fetch without the lease is better than a slow one."""
ANSWER_LOOKS: Final = 10
"""Number of parts of that timeout: an event loop that is late looks for the answer between two of them."""
REQUEST_INTERVAL_S: Final = 0.01
"""Interval of statements with requests: a statement costs a twentieth of a miss, a request in it a tenth of that."""
UNPACED_MAX: Final = 2
"""Maximum number of leases, held or requested, up to which each request has a statement of its own."""
REQUESTS_MAX: Final = 500
"""Maximum number of requests in one statement."""
RELEASE_INTERVAL_S: Final = 0.05
"""Interval of collecting releases for one statement, unless one of them has a failure."""
RELEASES_MAX: Final = 500
"""Maximum number of releases in one statement."""
ATTEMPTS_MAX: Final = 3
"""Maximum number of attempts of a request whose row changes between the two parts of its statement."""
CLEANUP_INTERVAL_S: Final = 10.0
"""Interval of deleting rows that have ended."""
GIVEN_UP_S: Final = 5
"""Seconds for which a member that could not be reached is not asked again."""
GIVEN_UP_MAX: Final = 1000
"""Maximum number of such members that are remembered."""
STORED_MAX: Final = 16_384
"""Maximum number of leases in their grace periods that can be released before the end; 1 kB each, 16 MB."""
RETRY_INTERVAL_S: Final = 1.0
"""Interval of attempts to send releases to a database that refuses them."""


class _Request:
    """A request for a lease, and the lease once this member has it. Implements `LeaseRequest`."""

    def __init__(self, leases: NodeLeases, name: str, link: bytes, token: str) -> None:
        self.name = name
        self.link = link
        self.token = token
        self.attempts = 0
        self.is_taken = False
        """Whether a fill waits for the answer, or has it."""
        self.loop = asyncio.get_running_loop()
        self.asked_at = self.loop.time()
        self.result: asyncio.Future[HeldByPeer | LinkFailure | StorageError | None] = self.loop.create_future()
        """A `StorageError`: the database did not answer."""
        self._leases = leases

    async def answer(self) -> HeldByPeer | LinkFailure | None:
        self.is_taken = True
        return await self._leases.wait_for_answer(self)

    @property
    def may_have_row(self) -> bool:
        """Whether the database may have a row for this request: it has, or the answer is not known."""
        return not self.result.done() or not isinstance(self.result.result(), HeldByPeer | LinkFailure)


class NodeLeases:
    """
    The leases of one member.

    Attributes:
        unleased: The number of fills that began without the lease, because of the database or of the lease's holder.

    Args:
        session: The session of the database.
        membership: This member, and which others are live.
        local: The leases among the workers of this machine; `None`: this is the only one.
        grace_s: As `Leases.grace_s`.
        timer: Gives monotonic seconds.
    """

    def __init__(
        self,
        session: DatabaseSession,
        membership: Membership,
        local: Leases | None,
        *,
        grace_s: float,
        timer: Callable[[], float],
    ) -> None:
        self.grace_s = grace_s
        self.unleased = 0
        self._session = session
        self._membership = membership
        self._table = LeaseTable(session, membership)
        self._local = local
        self._timer = timer
        self._tokens = count(1)
        self._requests: dict[str, _Request] = {}
        """By name the newest request, until its release."""
        self._stored: TTLCache[str, _Request] = TTLCache(STORED_MAX, grace_s, timer=timer)
        """Requests whose images are stored, during their grace periods: such a lease can still be released."""
        self._unsent: dict[str, _Request] = {}
        """By token, requests that no statement has yet."""
        self._request_task: asyncio.Task[None] | None = None
        self._requested_at = 0.0
        self._releases: list[Release] = []
        self._is_urgent = asyncio.Event()
        self._has_lost_releases = False
        self._release_task: asyncio.Task[None] | None = None
        self._cleaned_up_at = timer()
        self._given_up: TTLCache[str, bool] = TTLCache(GIVEN_UP_MAX, GIVEN_UP_S, timer=timer)
        self._refresh = asyncio.Lock()

    async def aclose(self) -> None:
        """Cancel what is on its way; the rows go with the member (`Membership.leave`)."""
        tasks = [task for task in (self._request_task, self._release_task) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def acquire(self, name: str) -> str | None:
        """Acquire a lease on this machine. As `Leases.acquire`."""
        return None if self._local is None else self._local.acquire(name)

    def prepare(self, name: str, link: bytes) -> bool:
        """Acquire and request a lease. As `Leases.prepare`."""
        if self.acquire(name) is not None:
            return False
        self.request(name, link)
        return True

    def request(self, name: str, link: bytes) -> _Request:
        """Request a lease, or return a prepared request that no fill has taken. As `Leases.request`."""
        request = self._requests.get(name)
        if request is None or request.is_taken or request.link != link:
            if request is not None and not request.is_taken:
                self._unsent.pop(request.token, None)
            token = str(next(self._tokens))
            request = self._requests[name] = self._unsent[token] = _Request(self, name, link, token)
            if self._request_task is None:
                self._request_task = asyncio.create_task(self._send_requests())
        return request

    def release(self, name: str, *, stored: bool = False) -> None:
        """Release a lease on this machine at once, and for other nodes soon. As `Leases.release`."""
        if self._local is not None:
            self._local.release(name, stored=stored)
        request = self._take_request(name)
        if request is None:
            return
        if stored:
            self._stored[name] = request
        self._end(Release(name, request.token, keep_s=self.grace_s if stored else 0), urgent=not stored)

    async def fail(self, name: str, failure: LinkFailure) -> None:
        """
        Release a lease of a link that failed. As `Leases.fail`.

        On this machine last: another worker of it would take the row over, and not see the failure.
        """
        try:
            request = self._take_request(name)
            if request is not None:
                release = Release(name, request.token, failure=failure)
                self._end(release, urgent=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        await release.sent.wait()
        finally:
            if self._local is not None:
                self._local.release(name)

    def _take_request(self, name: str) -> _Request | None:
        """Take the request of a lease that ends; `None`: the database has no row for it."""
        request = self._requests.pop(name, None) or self._stored.pop(name, None)
        if request is None or self._unsent.pop(request.token, None) is not None or not request.may_have_row:
            return None
        return request

    def _end(self, release: Release, *, urgent: bool) -> None:
        """Have a release sent."""
        if self._has_lost_releases:
            release.sent.set()  # all rows without a running fill are deleted soon
            return
        self._releases.append(release)
        if urgent:
            self._is_urgent.set()
        if self._release_task is None:
            self._release_task = asyncio.create_task(self._send_releases())

    def give_up_on(self, holder: str) -> bool:
        """Note that a member cannot be reached; another worker of this machine is not given up."""
        if self._local is not None and "/" not in holder:
            return self._local.give_up_on(holder)
        self._given_up[holder] = True
        return True

    async def wait_for_answer(self, request: _Request) -> HeldByPeer | LinkFailure | None:
        """Return the answer to a request as the fill sees it; `None`: it may fetch, with the lease or without."""
        timeout_s = max(0.0, request.asked_at + ANSWER_TIMEOUT_S - request.loop.time())
        for _ in range(ANSWER_LOOKS):
            if not request.result.done():
                await asyncio.wait([request.result], timeout=timeout_s / ANSWER_LOOKS)
        answer = request.result.result() if request.result.done() else StorageError("the database does not answer")
        if isinstance(answer, StorageError) or (
            isinstance(answer, HeldByPeer) and not await self._can_follow(answer.holder)
        ):
            self.unleased += 1
            return None
        return answer

    async def _can_follow(self, holder: str) -> bool:
        """Tell whether the holder of a lease is a live member, as far as this one knows."""
        if holder in self._given_up:
            return False
        if holder not in self._membership.members:
            async with self._refresh:  # it may have joined since the last heartbeat
                if holder not in self._membership.members:
                    with suppress(StorageError):
                        await self._membership.beat()
                    if holder not in self._membership.members:
                        self._given_up[holder] = True
        return holder not in self._given_up

    async def _send_requests(self) -> None:
        """Send the requests, until there are no more."""
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                wait_s = self._requested_at + REQUEST_INTERVAL_S - loop.time()
                if wait_s > 0 and len(self._requests) > UNPACED_MAX:
                    await asyncio.sleep(wait_s)
                self._requested_at = loop.time()
                batch: dict[str, _Request] = {}
                for request in list(self._unsent.values()):
                    if request.name not in batch and len(batch) < REQUESTS_MAX:
                        batch[request.name] = self._unsent.pop(request.token)
                await self._send_request_batch(batch)
        finally:
            self._request_task = None

    async def _send_request_batch(self, batch: dict[str, _Request]) -> None:
        tokens = {name: request.token for name, request in batch.items()}
        links = {name: request.link for name, request in batch.items()}
        try:
            answers = await self._table.request(tokens, links)
        except StorageError as error:
            for request in batch.values():
                request.result.set_result(error)
            return
        for name, answer in answers.items():
            batch.pop(name).result.set_result(answer)
        for request in batch.values():
            request.attempts += 1
            if request.attempts < ATTEMPTS_MAX and self._requests.get(request.name) is request:
                self._unsent[request.token] = request
            else:
                request.result.set_result(StorageError("the lease changes its holder too often"))

    async def _send_releases(self) -> None:
        """Send the releases, until there are no more."""
        try:
            while self._releases or self._has_lost_releases:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RELEASE_INTERVAL_S):
                        await self._is_urgent.wait()
                self._is_urgent.clear()
                try:
                    await self._send_batch()
                except StorageError:
                    self._has_lost_releases = True
                    for release in self._releases:
                        release.sent.set()
                    self._releases.clear()
                    await asyncio.sleep(RETRY_INTERVAL_S)
                    await self._session.wait_connected()
        finally:
            self._release_task = None

    async def _send_batch(self) -> None:
        if self._has_lost_releases:
            self._has_lost_releases = False
            await self._table.release_all_but([request.token for request in self._requests.values()])
        batch, self._releases = self._releases[:RELEASES_MAX], self._releases[RELEASES_MAX:]
        if batch:
            await self._table.release(batch)
        if self._timer() - self._cleaned_up_at > CLEANUP_INTERVAL_S:
            self._cleaned_up_at = self._timer()
            await self._table.clean_up()
