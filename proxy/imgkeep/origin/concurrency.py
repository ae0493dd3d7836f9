"""
The limit on concurrent fetches: slots in all and per host, a share for each client, and bounded queues in front.

A fetch passes three limits in this order: the slots of its host, its client's share of all slots, all slots. It waits
for the first two together and holds neither meanwhile, so a client at its share keeps no host's slot from others, and a
host that hangs keeps no client from other hosts. It then waits for one of all slots, and holds the other two.

Rules:
- Slots go to clients round robin, at every host and in all: a client waits for its own fetches and one of each other.
- Visitors cannot take the slots that are reserved for the API and jobs, nor these all that visitors have.
- A fetch without a reader (`Demand.yields`) stops as soon as another one waits for its slot, and at once where it waits
  itself. It goes on as long as no other fetch waits.
- No step looks through a queue. A release looks at as many hosts as its own client waits for, at most.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Self

from imgkeep.core.errors import Busy
from imgkeep.origin.demand import Demand
from imgkeep.origin.fetch_queues import ClientAtHost, ClientState, HostState, Parties, Slot

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

QUEUE_PER_SLOT: Final = 4
"""Maximum length of a queue for each slot: a few fetches serve it, and clients do not wait for more."""
CLIENT_PART: Final = 8
"""A client's share is an eighth of all slots and of the queue: seven clients fill what visitors can have."""
HOST_PART: Final = 4
"""
A client's share of a host's slots is a quarter. It is more than of all slots, because a page's images often come from
one host; a host's queue lets in every client, so others wait there and are never refused.
"""
RESERVED_PART: Final = 8
"""An eighth of the slots is reserved for the API and jobs, and an eighth for visitors; below 8 slots none is."""
RETRY_AFTER_S: Final = 2


def _nothing() -> None:
    """Stop nothing."""


def _part(number: int, part: int) -> int:
    return max(1, number // part)


class FetchLimiter:
    """The slots. `refused` receives the name of the limit by which a fetch was refused."""

    def __init__(self, slots: int, slots_per_host: int, *, refused: Callable[[str], None] = lambda _: None) -> None:
        self._slots = slots
        self._slots_per_host = slots_per_host
        self._refused = refused
        self._slots_of_class = slots - slots // RESERVED_PART
        self._queue_of_class = self._slots_of_class * QUEUE_PER_SLOT
        self._share = _part(slots, CLIENT_PART)
        self._share_of_host = _part(slots_per_host, HOST_PART)
        self._queue_share = _part(slots * QUEUE_PER_SLOT, CLIENT_PART)
        self._queue_of_host = slots_per_host * QUEUE_PER_SLOT
        self._queue_share_of_host = _part(self._queue_of_host, CLIENT_PART)
        self._used = {True: 0, False: 0}
        """By class: the API and jobs, or visitors."""
        self._waiting = {True: 0, False: 0}
        self._own_next = False
        self.known = Parties(self._share)
        self._next: dict[bool, OrderedDict[ClientState, None]] = {True: OrderedDict(), False: OrderedDict()}
        """Clients that wait for one of all slots, in the order in which they get one."""
        self._yielding: OrderedDict[Slot, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return self._waiting[True] + self._waiting[False]

    @property
    def used(self) -> int:
        return self._used[True] + self._used[False]

    def enter(self, host: str, demand: Demand | None = None, stop: Callable[[], None] = _nothing) -> FetchSlot:
        """
        Wait for a slot at the host and among all, and hold both: `async with limiter.enter(host, ...) as slot`.

        Args:
            host: The host.
            demand: The cause of the fetch; `None`: the API or a job.
            stop: Ends the block soon; called at most once, when the fetch has to yield.

        Raises:
            Busy: A queue is full, or the client's part of it.
        """
        return FetchSlot(self, host, demand or Demand(), stop)

    # Requests of a fetch. Each grants at once where it can, else returns with the slot in a queue.

    def request_host(self, slot: Slot, name: str) -> None:
        at_host = self.known.join_host(name, slot.owner)
        if self._may_start(at_host, slot) and at_host.host.used < self._slots_per_host:
            self._start(at_host, slot)
            return
        if not slot.started:
            try:
                self._check_queues(at_host, own=slot.own)
            except Busy:
                self.known.leave_host(at_host)
                raise
        slot.at_host, slot.queue = at_host, at_host.moving if slot.started else at_host.queue
        slot.queue.add(slot, slot.network)
        at_host.host.waiting += 1
        self._count_waiting(slot, 1)
        self._list(at_host)
        if at_host in at_host.host.next:
            self._stop_one(at_host.host.yielding)
        if slot.demand.yields:
            slot.stop()

    def request_all(self, slot: Slot) -> None:
        own = slot.own
        if self._has_room(own):
            self._admit(slot)
            return
        owner = slot.owner
        if not slot.waited:
            self._check_queue(owner, own=own)
        slot.queue = owner.waiting_for_all
        owner.waiting_for_all.add(slot, slot.network)
        self._count_waiting(slot, 1)
        self._next[own][owner] = None
        if self._wants_all:
            self._stop_one(self._yielding)
        if slot.demand.yields:
            slot.stop()

    def leave_queue(self, slot: Slot) -> None:
        """Give up waiting, or a slot that was granted just then."""
        queue, at_host = slot.queue, slot.at_host
        assert queue is not None
        slot.queue = None
        queue.discard(slot, slot.network)
        self._count_waiting(slot, -1)
        if queue is slot.owner.waiting_for_all:
            if not queue:
                self._next[slot.own].pop(slot.owner, None)
            return
        assert at_host is not None
        at_host.host.waiting -= 1
        if not at_host.waiting:
            self._unlist(at_host)
        self.known.leave_host(at_host)
        slot.at_host = None

    def leave_host(self, slot: Slot, *, moving: bool = False) -> None:
        at_host = slot.at_host
        assert at_host is not None
        host = at_host.host
        slot.at_host = None
        self._drop_yielding(slot, at_host)
        host.used -= 1
        at_host.held -= 1
        if at_host.waiting:
            self._list(at_host)
        if not moving:
            self.leave_share(slot)
        self._fill_host(host)
        self.known.leave_host(at_host)

    def leave_share(self, slot: Slot) -> None:
        """End a fetch that was redirected and has no slot at the next host yet."""
        slot.started = False
        slot.owner.started -= 1
        self._start_others(slot.owner)

    def leave_all(self, slot: Slot) -> None:
        slot.inside = False
        self._used[slot.own] -= 1
        self._fill_all()

    def reconsider(self, slot: Slot) -> None:
        """Look whether the fetch has to yield now."""
        at_host = slot.at_host
        if not slot.demand.yields:
            self._drop_yielding(slot, at_host)
        elif slot.queue is not None:
            slot.stop()
        elif at_host is not None and slot.inside:
            if self._wants_all or at_host.host.next or slot.owner.at_share or at_host.waiting:
                slot.stop()
            else:
                for each in (self._yielding, at_host.host.yielding, slot.owner.yielding, at_host.yielding):
                    each[slot] = None

    # Decisions.

    def _may_start(self, at_host: ClientAtHost, slot: Slot) -> bool:
        return at_host.held < self._share_at_host(at_host) and (slot.started or not at_host.owner.full)

    def _share_at_host(self, at_host: ClientAtHost) -> int:
        return self._slots_per_host if at_host.owner.share is None else self._share_of_host

    def _has_room(self, own: bool) -> bool:  # noqa: FBT001 - the class that asks
        return self.used < self._slots and self._used[own] < self._slots_of_class

    def _start(self, at_host: ClientAtHost, slot: Slot) -> None:
        at_host.host.used += 1
        at_host.held += 1
        slot.at_host = at_host
        if not slot.started:
            slot.started = True
            at_host.owner.started += 1
        if slot.inside:
            self.reconsider(slot)

    def _admit(self, slot: Slot) -> None:
        self._used[slot.own] += 1
        slot.inside = True
        self.reconsider(slot)

    def _list(self, at_host: ClientAtHost) -> None:
        """List a client that waits for a host where a free slot finds it, and make room for it."""
        if at_host.held >= self._share_at_host(at_host):
            self._stop_one(at_host.yielding)  # listed again when it releases one of its slots there
        elif at_host.moving or not at_host.owner.full:
            at_host.owner.at_share.pop(at_host, None)
            at_host.host.next.setdefault(at_host, None)
        elif at_host not in at_host.host.next:  # if it is there, `_fill_host` finds that out
            at_host.owner.at_share[at_host] = None
            self._stop_one(at_host.owner.yielding)

    def _unlist(self, at_host: ClientAtHost) -> None:
        at_host.host.next.pop(at_host, None)
        at_host.owner.at_share.pop(at_host, None)

    def _start_others(self, owner: ClientState) -> None:
        """Give the rest of a client's share to another host that it waits for."""
        while owner.at_share and not owner.full:
            at_host, _ = owner.at_share.popitem(last=False)
            at_host.host.next[at_host] = None
            self._fill_host(at_host.host)

    def _fill_host(self, host: HostState) -> None:
        """Give the free slots of a host to the clients that are next."""
        while host.next and host.used < self._slots_per_host:
            at_host, _ = host.next.popitem(last=False)
            if at_host.held >= self._share_at_host(at_host):
                continue  # as in `_list`
            queue = at_host.moving or (None if at_host.owner.full else at_host.queue)
            if not queue:
                self._list(at_host)
                continue
            slot = queue.pop()
            self._grant(slot)
            host.waiting -= 1
            self._start(at_host, slot)
            if at_host.waiting:
                self._list(at_host)
        if host.next:
            self._stop_one(host.yielding)

    def _fill_all(self) -> None:
        while True:
            able = [own for own in (True, False) if self._next[own] and self._has_room(own)]
            if not able:
                break
            own = self._own_next if self._own_next in able else able[0]
            self._own_next = not own
            owner, _ = self._next[own].popitem(last=False)
            slot = owner.waiting_for_all.pop()
            if owner.waiting_for_all:
                self._next[own][owner] = None
            self._grant(slot)
            self._admit(slot)
        if self._wants_all:
            self._stop_one(self._yielding)

    def _grant(self, slot: Slot) -> None:
        slot.queue = None
        slot.waited = True
        self._count_waiting(slot, -1)
        slot.grant()

    @property
    def _wants_all(self) -> bool:
        """Whether a fetch waits that a visitor's slot would let in."""
        return bool(self._next[False] or (self._next[True] and self.used >= self._slots))

    def _stop_one(self, holding: OrderedDict[Slot, None]) -> None:
        """Stop one of the fetches without a reader."""
        if holding:
            slot = next(iter(holding))
            self._drop_yielding(slot, slot.at_host)
            slot.stop()

    def _drop_yielding(self, slot: Slot, at_host: ClientAtHost | None) -> None:
        if slot in self._yielding and at_host is not None:
            for each in (self._yielding, at_host.host.yielding, slot.owner.yielding, at_host.yielding):
                del each[slot]

    def _check_queues(self, at_host: ClientAtHost, *, own: bool) -> None:
        # A host's queue is full for those clients only that have their part of it: it shuts no client out.
        if at_host.host.waiting >= self._queue_of_host and at_host.waiting >= self._queue_share_of_host:
            self._refuse("host_queue", "too many images of this host are being fetched at the moment")
        self._check_queue(at_host.owner, own=own)

    def _check_queue(self, owner: ClientState, *, own: bool) -> None:
        if owner.share is not None and owner.waiting >= self._queue_share:
            self._refuse(
                "client_queue",
                "too many images are being fetched for this address: retry later; if clients reach imgkeep through a "
                "proxy, set server.trusted_proxies",
            )
        if self.waiting >= self._slots * QUEUE_PER_SLOT or self._waiting[own] >= self._queue_of_class:
            self._refuse("fetch_queue", "too many images are being fetched at the moment")

    def _refuse(self, limit: str, detail: str) -> None:
        self._refused(limit)
        raise Busy(detail, retry_after_s=RETRY_AFTER_S)

    def _count_waiting(self, slot: Slot, number: int) -> None:
        self._waiting[slot.own] += number
        slot.owner.waiting += number


class FetchSlot(Slot):
    """A slot at one host at a time: redirects lead to others, which have their limits too."""

    __slots__ = ("_first", "_limiter")

    def __init__(self, limiter: FetchLimiter, host: str, demand: Demand, stop: Callable[[], None]) -> None:
        super().__init__(demand, stop)
        self._limiter = limiter
        self._first = host

    async def __aenter__(self) -> Self:
        limiter = self._limiter
        self.owner = limiter.known.join(self.demand.client)
        self.demand.changed = self._reconsider
        try:
            limiter.request_host(self, self._first)
            await self.wait_until_granted()
            limiter.request_all(self)
            await self.wait_until_granted()
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    async def move(self, host: str) -> None:
        """Wait for a slot at `host`, and hold on to the one of all slots."""
        if self.at_host is None or self.at_host.host.name != host:
            # The old slot is released first: two fetches that waited for each other's would wait for ever.
            if self.at_host is not None:
                self._limiter.leave_host(self, moving=True)
            self._limiter.request_host(self, host)
            await self.wait_until_granted()

    def _reconsider(self) -> None:
        self._limiter.reconsider(self)

    def _release(self) -> None:
        limiter = self._limiter
        self.forget_stop()
        self.demand.unwatch()
        if self.queue is not None:
            limiter.leave_queue(self)
        if self.at_host is not None:
            limiter.leave_host(self)
        elif self.started:
            limiter.leave_share(self)
        if self.inside:
            limiter.leave_all(self)
        limiter.known.leave(self.owner)
