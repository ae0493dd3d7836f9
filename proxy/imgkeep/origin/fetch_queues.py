"""The state of `concurrency.py`: slots of fetches, and queues by client and host. Nothing here decides."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeAlias

from imgkeep.core.network_queue import NetworkQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Client
    from imgkeep.origin.demand import Demand

OWN_CLIENT: Final = "own"
"""The API and jobs; no network has this name."""
LOCAL_CLIENT: Final = "local"
"""This machine's own programs that come as visitors."""


class Slot:
    """
    One fetch: what it holds, or the queue in which it waits.

    Attributes:
        own: Whether the API or a job causes it, and no visitor.
        owner: Its client.
        at_host: Its client's state at the host of which it holds a slot, or waits for one.
        queue: The queue in which it waits.
        waited: Whether it has waited for one of all slots.
        started: Whether it counts in its client's share.
        inside: Whether it holds one of all slots.
    """

    __slots__ = (
        "_granted",
        "_stop",
        "at_host",
        "demand",
        "inside",
        "network",
        "own",
        "owner",
        "queue",
        "started",
        "waited",
    )  # fmt: skip

    def __init__(self, demand: Demand, stop: Callable[[], None]) -> None:
        self._stop: Callable[[], None] | None = stop
        self._granted: asyncio.Future[None] | None = None
        self.demand = demand
        self.own = demand.client.own
        self.network = demand.client.networks[0] if demand.client.networks else ""
        self.owner: ClientState
        self.at_host: ClientAtHost | None = None
        self.queue: FetchQueue | None = None
        self.waited = False
        self.started = False
        self.inside = False

    def grant(self) -> None:
        """End the wait."""
        if self._granted is not None and not self._granted.done():
            self._granted.set_result(None)

    def stop(self) -> None:
        """Stop the fetch for another one, once."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def forget_stop(self) -> None:
        self._stop = None

    async def wait_until_granted(self) -> None:
        if self.queue is not None:
            self._granted = asyncio.get_running_loop().create_future()
            await self._granted


FetchQueue: TypeAlias = NetworkQueue[Slot]
"""The fetches of one client that wait."""


class ClientState:
    """
    One client: a network whose fetches have a share.

    Attributes:
        share: Maximum number of its fetches that hold a slot of a host; `None`: it has no limit of its own.
        started: Number of its fetches that hold a slot of a host.
        at_share: Hosts that it would ask if it were not at its share.
    """

    __slots__ = ("at_share", "name", "share", "started", "users", "waiting", "waiting_for_all", "yielding")

    def __init__(self, name: str, share: int | None) -> None:
        self.name = name
        self.share = share
        self.users = 0
        self.started = 0
        self.waiting = 0
        self.waiting_for_all = FetchQueue()
        self.at_share: OrderedDict[ClientAtHost, None] = OrderedDict()
        self.yielding: OrderedDict[Slot, None] = OrderedDict()

    @property
    def full(self) -> bool:
        return self.share is not None and self.started >= self.share


class HostState:
    """
    One host.

    Attributes:
        next: Clients that wait for nothing but a slot here, in the order in which they get one.
    """

    __slots__ = ("clients", "name", "next", "used", "waiting", "yielding")

    def __init__(self, name: str) -> None:
        self.name = name
        self.used = 0
        self.waiting = 0
        self.clients: dict[str, ClientAtHost] = {}
        self.next: OrderedDict[ClientAtHost, None] = OrderedDict()
        self.yielding: OrderedDict[Slot, None] = OrderedDict()


class ClientAtHost:
    """
    One client at one host.

    Attributes:
        queue: Its fetches that wait for a slot here.
        moving: Its fetches that a redirect led here: they hold one of all slots and their part of the share already.
    """

    __slots__ = ("held", "host", "moving", "owner", "queue", "users", "yielding")

    def __init__(self, host: HostState, owner: ClientState) -> None:
        self.host = host
        self.owner = owner
        self.users = 0
        self.held = 0
        self.queue = FetchQueue()
        self.moving = FetchQueue()
        self.yielding: OrderedDict[Slot, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self.moving)


class Parties:
    """The clients and hosts that have a fetch, each known as long as it has one. `share`: that of each client."""

    def __init__(self, share: int) -> None:
        self.clients: dict[str, ClientState] = {}
        self.hosts: dict[str, HostState] = {}
        self._share = share

    def join(self, client: Client) -> ClientState:
        name = OWN_CLIENT if client.own else LOCAL_CLIENT if client.loopback else client.networks[-1]
        owner = self.clients.get(name)
        if owner is None:
            owner = self.clients[name] = ClientState(name, None if client.own or client.loopback else self._share)
        owner.users += 1
        return owner

    def leave(self, owner: ClientState) -> None:
        owner.users -= 1
        if not owner.users:
            del self.clients[owner.name]

    def join_host(self, name: str, owner: ClientState) -> ClientAtHost:
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = HostState(name)
        at_host = host.clients.get(owner.name)
        if at_host is None:
            at_host = host.clients[owner.name] = ClientAtHost(host, owner)
        at_host.users += 1
        return at_host

    def leave_host(self, at_host: ClientAtHost) -> None:
        at_host.users -= 1
        if not at_host.users:
            host = at_host.host
            del host.clients[at_host.owner.name]
            if not host.clients:
                del self.hosts[host.name]
