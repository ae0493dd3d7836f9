"""
Places for fetches: so many in all and per host, a share for each client, and bounded queues in front.

A fetch passes three limits in this order: its host's places, its client's share of all places, all places. It waits for
the first two together and holds neither meanwhile, so a client at its share keeps no host's place from others, and a
host that hangs keeps no client from other hosts. It then waits for one of all places, holding the other two.

Rules:
- Clients take turns, at every host and at all places: a client waits for its own fetches and one of each other.
- Visitors cannot take the places that are reserved for the API and the jobs, nor these all that visitors have.
- A fetch without a reader (`Demand.yields`) is stopped as soon as it keeps another one waiting, and at once where
  it waits itself. Where no other fetch waits it goes on.
- No step looks through a queue. A release looks at as many hosts as its own client waits for, at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Self

from imgkeep.core.errors import Busy
from imgkeep.origin.demand import Demand

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from imgkeep.core.records import Client

QUEUE_PER_PLACE: Final = 4
"""A queue of four times the places is served within a few fetches; longer, and clients give up before their turn."""
CLIENT_PART: Final = 8
"""A client holds an eighth of all places and of the queue: it takes seven of them to fill what visitors can have."""
HOST_PART: Final = 4
"""
A client holds a quarter of a host's places. More than of all places, because a page's images often come from one host;
a host's queue lets in every client, so others wait for a turn there and are never refused.
"""
RESERVED_PART: Final = 8
"""An eighth of the places is reserved for the API and the jobs, and an eighth for visitors; below 8 places none is."""
RETRY_AFTER_S: Final = 2


def _nothing() -> None:
    """Stop nothing."""


def _share(number: int, part: int) -> int:
    return max(1, number // part)


class _Line:
    """Fetches of one client that wait, in rounds over its narrowest networks: the /64s of a /48 take turns."""

    __slots__ = ("_by_network", "_number")

    def __init__(self) -> None:
        self._by_network: OrderedDict[str, OrderedDict[FetchSlot, None]] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def add(self, place: FetchSlot) -> None:
        self._by_network.setdefault(place.network, OrderedDict())[place] = None
        self._number += 1

    def pop(self) -> FetchSlot:
        network, places = self._by_network.popitem(last=False)
        place, _ = places.popitem(last=False)
        if places:
            self._by_network[network] = places
        self._number -= 1
        return place

    def discard(self, place: FetchSlot) -> None:
        places = self._by_network.get(place.network)
        if places is not None and place in places:
            del places[place]
            self._number -= 1
            if not places:
                del self._by_network[place.network]


class _Group:
    """A client: a network whose fetches share its part. `share` `None`: it has no limit of its own."""

    __slots__ = ("at_share", "name", "share", "started", "users", "waiting", "waiting_for_all", "yielding")

    def __init__(self, name: str, share: int | None) -> None:
        self.name = name
        self.share = share
        self.users = 0
        self.started = 0
        """Fetches that hold a host's place."""
        self.waiting = 0
        self.waiting_for_all = _Line()
        self.at_share: OrderedDict[_Pair, None] = OrderedDict()
        """Hosts that it would ask if it were not at its share."""
        self.yielding: OrderedDict[FetchSlot, None] = OrderedDict()

    @property
    def full(self) -> bool:
        return self.share is not None and self.started >= self.share


class _Host:
    __slots__ = ("name", "pairs", "ring", "used", "waiting", "yielding")

    def __init__(self, name: str) -> None:
        self.name = name
        self.used = 0
        self.waiting = 0
        self.pairs: dict[str, _Pair] = {}
        self.ring: OrderedDict[_Pair, None] = OrderedDict()
        """Clients that wait for nothing but a place here, in the order of their turns."""
        self.yielding: OrderedDict[FetchSlot, None] = OrderedDict()


class _Pair:
    """What one client has at one host."""

    __slots__ = ("group", "held", "host", "line", "moving", "users", "yielding")

    def __init__(self, host: _Host, group: _Group) -> None:
        self.host = host
        self.group = group
        self.users = 0
        self.held = 0
        self.line = _Line()
        self.moving = _Line()
        """Those that were redirected here, and hold a place of all and their client's part already."""
        self.yielding: OrderedDict[FetchSlot, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self.line) + len(self.moving)


class FetchLimiter:
    """The places. `refused` is told by which limit a fetch was refused."""

    def __init__(self, places: int, places_per_host: int, *, refused: Callable[[str], None] = lambda _: None) -> None:
        self._places = places
        self._places_per_host = places_per_host
        self._refused = refused
        self._places_of_class = places - places // RESERVED_PART
        self._queue_of_class = self._places_of_class * QUEUE_PER_PLACE
        self._share = _share(places, CLIENT_PART)
        self._share_of_host = _share(places_per_host, HOST_PART)
        self._queue_share = _share(places * QUEUE_PER_PLACE, CLIENT_PART)
        self._queue_of_host = places_per_host * QUEUE_PER_PLACE
        self._queue_share_of_host = _share(self._queue_of_host, CLIENT_PART)
        self._used = {True: 0, False: 0}
        """By whether the API and the jobs hold them, or visitors."""
        self._waiting = {True: 0, False: 0}
        self._own_turn = False
        self._groups: dict[str, _Group] = {}
        self._hosts: dict[str, _Host] = {}
        self._rings: dict[bool, OrderedDict[_Group, None]] = {True: OrderedDict(), False: OrderedDict()}
        """Clients that wait for one of all places, in the order of their turns."""
        self._yielding: OrderedDict[FetchSlot, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return self._waiting[True] + self._waiting[False]

    @property
    def used(self) -> int:
        return self._used[True] + self._used[False]

    def enter(self, host: str, demand: Demand | None = None, stop: Callable[[], None] = _nothing) -> FetchSlot:
        """
        Wait for a place at the host and among all, and hold both: `async with limiter.enter(host, ...) as place`.

        Without a `demand` it is the API's or a job's. `stop` ends the block soon; it is called at most once, when the
        fetch has to yield.

        Raises:
            Busy: A queue is full, or the client's part of it.
        """
        return FetchSlot(self, host, demand or Demand(), stop)

    # What a place asks for. Each grants at once where it can, else returns with the place in a line.

    def ask_host(self, place: FetchSlot, name: str) -> None:
        pair = self._join(name, place)
        if self._may_start(pair, place) and pair.host.used < self._places_per_host:
            self._start(pair, place)
            return
        if not place.started:
            try:
                self._check_queues(pair, own=place.own)
            except Busy:
                self._part(pair)
                raise
        place.pair, place.lines = pair, pair.moving if place.started else pair.line
        place.lines.add(place)
        pair.host.waiting += 1
        self._count_waiting(place, 1)
        self._list(pair)
        if pair in pair.host.ring:
            self._stop_one(pair.host.yielding)
        if place.demand.yields:
            place.stop()

    def ask_all(self, place: FetchSlot) -> None:
        own = place.own
        if self._has_room(own):
            self._admit(place)
            return
        group = place.group
        if not place.waited:
            self._check_queue(group, own=own)
        place.lines = group.waiting_for_all
        group.waiting_for_all.add(place)
        self._count_waiting(place, 1)
        self._rings[own][group] = None
        if self._wants_all:
            self._stop_one(self._yielding)
        if place.demand.yields:
            place.stop()

    def leave_line(self, place: FetchSlot) -> None:
        """Give up waiting, or what was granted while giving up."""
        line, pair = place.lines, place.pair
        assert line is not None
        place.lines = None
        line.discard(place)
        self._count_waiting(place, -1)
        if line is place.group.waiting_for_all:
            if not line:
                self._rings[place.own].pop(place.group, None)
            return
        assert pair is not None
        pair.host.waiting -= 1
        if not pair.waiting:
            self._unlist(pair)
        self._part(pair)
        place.pair = None

    def leave_host(self, place: FetchSlot, *, moving: bool = False) -> None:
        pair = place.pair
        assert pair is not None
        host = pair.host
        place.pair = None
        self._drop_yielding(place, pair)
        host.used -= 1
        pair.held -= 1
        if pair.waiting:
            self._list(pair)
        if not moving:
            self.drop_share(place)
        self._call_in(host)
        self._part(pair)

    def drop_share(self, place: FetchSlot) -> None:
        """A fetch ends that was redirected and has no place at the next host yet."""
        place.started = False
        place.group.started -= 1
        self._start_others(place.group)

    def leave_all(self, place: FetchSlot) -> None:
        place.inside = False
        self._used[place.own] -= 1
        self._call_in_all()

    def reconsider(self, place: FetchSlot) -> None:
        """Look whether the place has to yield now."""
        pair = place.pair
        if not place.demand.yields:
            self._drop_yielding(place, pair)
        elif place.lines is not None:
            place.stop()
        elif pair is not None and place.inside:
            if self._wants_all or pair.host.ring or place.group.at_share or pair.waiting:
                place.stop()
            else:
                for each in (self._yielding, pair.host.yielding, place.group.yielding, pair.yielding):
                    each[place] = None

    # How it is decided.

    def _may_start(self, pair: _Pair, place: FetchSlot) -> bool:
        return pair.held < self._pair_share(pair) and (place.started or not pair.group.full)

    def _pair_share(self, pair: _Pair) -> int:
        return self._places_per_host if pair.group.share is None else self._share_of_host

    def _has_room(self, own: bool) -> bool:  # noqa: FBT001 - which class asks
        return self.used < self._places and self._used[own] < self._places_of_class

    def _start(self, pair: _Pair, place: FetchSlot) -> None:
        pair.host.used += 1
        pair.held += 1
        place.pair = pair
        if not place.started:
            place.started = True
            pair.group.started += 1
        if place.inside:
            self.reconsider(place)

    def _admit(self, place: FetchSlot) -> None:
        self._used[place.own] += 1
        place.inside = True
        self.reconsider(place)

    def _list(self, pair: _Pair) -> None:
        """Put a client that waits for a host where it is found when its turn may come, and make room for it."""
        if pair.held >= self._pair_share(pair):
            self._stop_one(pair.yielding)  # listed again when one of its places there is left
        elif pair.moving or not pair.group.full:
            pair.group.at_share.pop(pair, None)
            pair.host.ring.setdefault(pair, None)
        elif pair not in pair.host.ring:  # where it is, its turn finds out
            pair.group.at_share[pair] = None
            self._stop_one(pair.group.yielding)

    def _unlist(self, pair: _Pair) -> None:
        pair.host.ring.pop(pair, None)
        pair.group.at_share.pop(pair, None)

    def _start_others(self, group: _Group) -> None:
        """Give what a client has left of its share to another host that it waits for."""
        while group.at_share and not group.full:
            pair, _ = group.at_share.popitem(last=False)
            pair.host.ring[pair] = None
            self._call_in(pair.host)

    def _call_in(self, host: _Host) -> None:
        """Give the free places of a host to those whose turn it is."""
        while host.ring and host.used < self._places_per_host:
            pair, _ = host.ring.popitem(last=False)
            if pair.held >= self._pair_share(pair):
                continue  # as in `_list`
            line = pair.moving or (None if pair.group.full else pair.line)
            if not line:
                self._list(pair)
                continue
            place = line.pop()
            self._called(place)
            host.waiting -= 1
            self._start(pair, place)
            if pair.waiting:
                self._list(pair)
        if host.ring:
            self._stop_one(host.yielding)

    def _call_in_all(self) -> None:
        while True:
            able = [own for own in (True, False) if self._rings[own] and self._has_room(own)]
            if not able:
                break
            own = self._own_turn if self._own_turn in able else able[0]
            self._own_turn = not own
            group, _ = self._rings[own].popitem(last=False)
            place = group.waiting_for_all.pop()
            if group.waiting_for_all:
                self._rings[own][group] = None
            self._called(place)
            self._admit(place)
        if self._wants_all:
            self._stop_one(self._yielding)

    def _called(self, place: FetchSlot) -> None:
        place.lines = None
        place.waited = True
        self._count_waiting(place, -1)
        place.called()

    @property
    def _wants_all(self) -> bool:
        """Whether a fetch waits that a visitor's place would let in."""
        return bool(self._rings[False] or (self._rings[True] and self.used >= self._places))

    def _stop_one(self, holding: OrderedDict[FetchSlot, None]) -> None:
        """Stop one of the fetches without a reader."""
        if holding:
            place = next(iter(holding))
            self._drop_yielding(place, place.pair)
            place.stop()

    def _drop_yielding(self, place: FetchSlot, pair: _Pair | None) -> None:
        if place in self._yielding and pair is not None:
            for each in (self._yielding, pair.host.yielding, place.group.yielding, pair.yielding):
                del each[place]

    def _check_queues(self, pair: _Pair, *, own: bool) -> None:
        # A host's queue is full for those clients only that have their part of it: it shuts no client out.
        if pair.host.waiting >= self._queue_of_host and pair.waiting >= self._queue_share_of_host:
            self._refused("host_queue")
            raise Busy("too many images of this host are being fetched at the moment", retry_after_s=RETRY_AFTER_S)
        self._check_queue(pair.group, own=own)

    def _check_queue(self, group: _Group, *, own: bool) -> None:
        if group.share is not None and group.waiting >= self._queue_share:
            self._refused("client_queue")
            raise Busy(
                "too many images are being fetched for this address at the moment; behind a proxy of yours, see "
                "server.trusted_proxies",
                retry_after_s=RETRY_AFTER_S,
            )
        full = self.waiting >= self._places * QUEUE_PER_PLACE or self._waiting[own] >= self._queue_of_class
        if full:
            self._refused("fetch_queue")
            raise Busy("too many images are being fetched at the moment", retry_after_s=RETRY_AFTER_S)

    def _count_waiting(self, place: FetchSlot, number: int) -> None:
        self._waiting[place.own] += number
        place.group.waiting += number

    # Clients and hosts are known as long as they have something here.

    def group_of(self, client: Client) -> _Group:
        name = OWN_GROUP if client.own else UNLIMITED_GROUP if client.loopback else client.networks[-1]
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name, None if client.own or client.loopback else self._share)
        group.users += 1
        return group

    def forget_group(self, group: _Group) -> None:
        group.users -= 1
        if not group.users:
            del self._groups[group.name]

    def _join(self, name: str, place: FetchSlot) -> _Pair:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(name)
        pair = host.pairs.get(place.group.name)
        if pair is None:
            pair = host.pairs[place.group.name] = _Pair(host, place.group)
        pair.users += 1
        return pair

    def _part(self, pair: _Pair) -> None:
        pair.users -= 1
        if not pair.users:
            host = pair.host
            del host.pairs[pair.group.name]
            if not host.pairs:
                del self._hosts[host.name]


OWN_GROUP: Final = "own"
"""The API and the jobs; no network is called like that."""
UNLIMITED_GROUP: Final = "local"
"""This machine's own programs that ask as visitors."""


class FetchSlot:
    """A place at one host at a time: redirects lead to others, which have their limits too."""

    __slots__ = (
        "_first", "_gates", "_stop", "_turn", "demand", "group", "inside", "lines", "network", "own", "pair", "started",
        "waited",
    )  # fmt: skip

    def __init__(self, limiter: FetchLimiter, host: str, demand: Demand, stop: Callable[[], None]) -> None:
        self._gates = limiter
        self._first = host
        self._stop: Callable[[], None] | None = stop
        self._turn: asyncio.Future[None] | None = None
        self.demand = demand
        self.own = demand.client.own
        self.network = demand.client.networks[0] if demand.client.networks else ""
        self.group: _Group
        self.pair: _Pair | None = None
        self.lines: _Line | None = None
        """Where it waits."""
        self.waited = False
        self.started = False
        self.inside = False

    async def __aenter__(self) -> Self:
        limiter = self._gates
        self.group = limiter.group_of(self.demand.client)
        self.demand.changed = self._reconsider
        try:
            limiter.ask_host(self, self._first)
            await self._wait()
            limiter.ask_all(self)
            await self._wait()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    async def move(self, host: str) -> None:
        """Wait for a place at `host`; what this fetch holds of all places it keeps."""
        if self.pair is None or self.pair.host.name != host:
            # The old place is left first: two fetches that waited for each other's would wait for ever.
            if self.pair is not None:
                self._gates.leave_host(self, moving=True)
            self._gates.ask_host(self, host)
            await self._wait()

    def called(self) -> None:
        """What was waited for is granted."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def stop(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    async def _wait(self) -> None:
        if self.lines is not None:
            self._turn = asyncio.get_running_loop().create_future()
            await self._turn

    def _reconsider(self) -> None:
        self._gates.reconsider(self)

    def _leave(self) -> None:
        limiter = self._gates
        self._stop = None
        self.demand.unwatch()
        if self.lines is not None:
            limiter.leave_line(self)
        if self.pair is not None:
            limiter.leave_host(self)
        elif self.started:
            limiter.drop_share(self)
        if self.inside:
            limiter.leave_all(self)
        limiter.forget_group(self.group)
