"""Builds the parts of a process whose database other machines may share."""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass, replace
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep import __version__
from imgkeep.bootstrap.peer_tls import make_client_context
from imgkeep.bootstrap.storage import describe_store
from imgkeep.cluster.nodes.authentication import NONCE_BYTES, RequestSigner
from imgkeep.cluster.nodes.change_reader import ChangeReader
from imgkeep.cluster.nodes.change_writer import ChangeWriter
from imgkeep.cluster.nodes.isolation import IsolationCheck
from imgkeep.cluster.nodes.leader import ClusterLeader
from imgkeep.cluster.nodes.leases import NodeLeases
from imgkeep.cluster.nodes.member import MemberIdentity
from imgkeep.cluster.nodes.membership import DEAD_AFTER_S, HEARTBEAT_INTERVAL_S, Membership
from imgkeep.cluster.nodes.peer_client import PeerClient
from imgkeep.cluster.nodes.peers import NodePeers
from imgkeep.config import data_folder, read_database_url
from imgkeep.database.engine import describe_location, require_driver
from imgkeep.database.session import DatabaseSession
from imgkeep.health import ClusterState
from imgkeep.images.cache_trust import CacheTrust
from imgkeep.storage.local.node_id import read_node_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from imgkeep.bootstrap.platform import Platform
    from imgkeep.cluster.nodes.change_reader import Receiver
    from imgkeep.cluster.workers.leases import WorkerLeases
    from imgkeep.cluster.workers.peers import WorkerPeers
    from imgkeep.config import Config

STALL_MARGIN_S: Final = 10
"""Time by which a peer may be silent for longer than a fetch may take: it checks and stores the image."""

HEARTBEATS_PER_TRUST: Final = 3
"""Minimum number of heartbeats in `cluster.stale_max_s`."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """
    The parts of a process whose database other machines may share.

    Attributes:
        make_reader: Makes the reading of changes, for what applies them. Before `start`.
        isolation: `None`: no other node is allowed.
    """

    session: DatabaseSession
    membership: Membership
    leader: ClusterLeader
    writer: ChangeWriter
    trust: CacheTrust
    make_reader: Callable[[Receiver], ChangeReader]
    isolation: IsolationCheck | None = None

    def describe(self) -> ClusterState:
        """Describe the place of this process in the cluster, without the network."""
        membership, fault = self.membership, None
        state = "catching up" if self.session.is_connected else "cut off"
        if membership.is_joined and membership.silence_s <= DEAD_AFTER_S:
            state = "joined"
        else:
            fault = f"this process is {state}: the database has not confirmed it for {membership.silence_s:.0f} s"
        members = [
            {
                "id": member.id,
                "node": member.node,
                "advertise_url": member.advertise_url,
                "version": member.version,
                "started_at": f"{member.started_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            }
            for member in sorted(membership.members.values(), key=lambda member: (member.node, member.started_at))
        ]
        own = {"id": membership.id, "state": state, "silence_s": round(membership.silence_s)}
        return ClusterState(fault, {**own, "members": members})

    async def start(self, reader: ChangeReader) -> list[asyncio.Task[None]]:
        """
        Connect to the database and join the cluster, as far as it answers; return the tasks that go on with both.

        Raises:
            RefusedByCluster: The database belongs to another cluster.
        """
        tasks = [asyncio.create_task(task) for task in (self.session.run(), self.membership.run(), reader.run())]
        if self.isolation is not None:
            tasks.append(asyncio.create_task(self.isolation.run()))
        await self.session.attempted.wait()
        if self.membership.refused is not None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise self.membership.refused
        return tasks


async def open_nodes(  # noqa: PLR0913 - in one place
    config: Config,
    platform: Platform,
    stack: AsyncExitStack,
    peers: WorkerPeers | None,
    local: WorkerLeases | None,
    *,
    grace_s: float,
    count: Callable[[str], None],
) -> tuple[Nodes, NodeLeases | None, NodePeers | None]:
    """
    Make the parts of a member, its leases and its peers; the last two are `None` where no other node is allowed.

    Args:
        config: The configuration.
        platform: Clocks.
        stack: Closes them.
        peers: The other workers of this machine.
        local: The leases among them.
        grace_s: As `Leases.grace_s`.
        count: Callback with the outcome of each request to a node, as that of `PeerClient`.

    Raises:
        ConfigError: A driver is missing, or `cluster.tls_ca` cannot be used.
    """
    nodes = await _make_nodes(config, platform, peers)
    if not config.cluster.secret:
        return nodes, None, None
    leases = NodeLeases(nodes.session, nodes.membership, local, grace_s=grace_s, timer=platform.timer)
    stack.push_async_callback(leases.aclose)
    node_peers = await _make_node_peers(config, nodes.membership, peers, count)
    stack.push_async_callback(node_peers.aclose)
    isolation = IsolationCheck(
        nodes.membership,
        node_peers.find_confirmed,
        trust=nodes.trust,
        stale_max_s=config.cluster.stale_max_s,
        timer=platform.timer,
        sleep=platform.sleep,
    )
    return replace(nodes, isolation=isolation), leases, node_peers


async def _make_node_peers(
    config: Config, membership: Membership, peers: WorkerPeers | None, count: Callable[[str], None]
) -> NodePeers:
    """Make the peers on other nodes. Raises: ConfigError: `cluster.tls_ca` cannot be used."""
    client = PeerClient(
        RequestSigner(
            config.cluster.secret,
            membership.id,
            now=membership.now,
            draw_nonce=partial(secrets.token_hex, NONCE_BYTES),
        ),
        stall_timeout_s=config.fetch.total_timeout_s + STALL_MARGIN_S,
        ssl_context=await asyncio.to_thread(make_client_context, config.cluster),
        count=count,
    )
    return NodePeers(membership, client, peers, body_bytes_max=config.fetch.body_bytes_max)


async def _make_nodes(config: Config, platform: Platform, peers: WorkerPeers | None) -> Nodes:
    session = make_session(config)
    cluster = config.cluster
    identity = MemberIdentity(
        id=f"{cluster.node_name}/{secrets.token_hex(8)}",
        node=cluster.node_name,
        host=await asyncio.to_thread(read_node_id, data_folder(config)),
        advertise_url=cluster.advertise_url.rstrip("/"),
        version=__version__,
        secret=cluster.secret,
        store=describe_store(config),
        is_only_process=peers is None,
    )
    # Caches are trusted for so long after a confirmed heartbeat, and one may be lost.
    interval_s = min(HEARTBEAT_INTERVAL_S, cluster.stale_max_s / HEARTBEATS_PER_TRUST)
    membership = Membership(identity, session, timer=platform.timer, sleep=platform.sleep, interval_s=interval_s)
    return make_nodes(session, membership, platform, local=peers, stale_max_s=cluster.stale_max_s)


def make_nodes(
    session: DatabaseSession,
    membership: Membership,
    platform: Platform,
    *,
    local: WorkerPeers | None = None,
    stale_max_s: float,
) -> Nodes:
    """Make the parts of a member around its session; `local` are the other workers of its machine."""
    trust = CacheTrust(platform.timer)
    writer = ChangeWriter(session, membership.id, local=local, timer=platform.timer, sleep=platform.sleep)
    make_reader = partial(
        ChangeReader,
        session,
        membership,
        writer=writer,
        trust=trust,
        stale_max_s=stale_max_s,
        timer=platform.timer,
        sleep=platform.sleep,
    )
    return Nodes(session, membership, ClusterLeader(session), writer, trust, make_reader)


def make_session(config: Config) -> DatabaseSession:
    """Make the session of the configured PostgreSQL; it connects later."""
    url = read_database_url(config.database.url)
    require_driver(url)
    plain_url = url.replace("postgresql+psycopg:", "postgresql:", 1)
    return DatabaseSession(plain_url, place=describe_location(url), draw=random.random)
