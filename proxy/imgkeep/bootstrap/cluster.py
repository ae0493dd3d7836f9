"""
Chooses how processes share the work: alone, as workers of one machine, as members of a cluster, or both.

Services get the same three interfaces in every case: leases, peers and a leader. None of them asks which case it is.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from imgkeep import __version__
from imgkeep.bootstrap.peer_tls import make_client_context
from imgkeep.bootstrap.storage import describe_store
from imgkeep.cluster.nodes.authentication import NONCE_BYTES, RequestSigner
from imgkeep.cluster.nodes.change_reader import ChangeReader
from imgkeep.cluster.nodes.change_writer import ChangeWriter
from imgkeep.cluster.nodes.leader import ClusterLeader
from imgkeep.cluster.nodes.leases import NodeLeases
from imgkeep.cluster.nodes.membership import DEAD_AFTER_S, HEARTBEAT_INTERVAL_S, Membership, NodeIdentity
from imgkeep.cluster.nodes.peer_client import PeerClient
from imgkeep.cluster.nodes.peers import NodePeers
from imgkeep.cluster.workers.leader import LeaderLock
from imgkeep.cluster.workers.leases import FillLeases
from imgkeep.cluster.workers.peers import Peers
from imgkeep.config import data_folder, read_database_url
from imgkeep.database.engine import describe_location, require_driver
from imgkeep.database.session import DatabaseSession
from imgkeep.health import ClusterState
from imgkeep.images.cache_trust import CacheTrust
from imgkeep.images.interfaces import Cluster
from imgkeep.images.limit_share import LimitShare
from imgkeep.images.record_sharing import RecordSharing
from imgkeep.storage.local.node_id import read_node_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.storage import Storage
    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.images.blocked_digests import BlockedDigests
    from imgkeep.images.interfaces import Notifier
    from imgkeep.web.fastpath.response_cache import ResponseCache

LEASE_GRACE_S: Final = 10
"""
Time for which peers see a lease after its image was stored, beyond what `store.timeout_s` lets a lookup take: a lookup
that began before the image was stored may end after it.
"""

STALL_MARGIN_S: Final = 10
"""Time by which a peer may be silent for longer than a fetch may take: it checks and stores the image."""

HEARTBEATS_PER_TRUST: Final = 3
"""Minimum number of heartbeats in `cluster.stale_max_s`."""

Leader: TypeAlias = LeaderLock | ClusterLeader


@dataclass(frozen=True, slots=True)
class Nodes:
    """The parts of a process whose database other machines may share."""

    session: DatabaseSession
    membership: Membership
    leader: ClusterLeader
    writer: ChangeWriter
    reader: ChangeReader
    trust: CacheTrust

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

    async def start(self) -> list[asyncio.Task[None]]:
        """
        Connect to the database and join the cluster, as far as it answers; return the tasks that go on with both.

        Raises:
            RefusedByCluster: The database belongs to another cluster.
        """
        tasks = [asyncio.create_task(task) for task in (self.session.run(), self.membership.run(), self.reader.run())]
        await self.session.attempted.wait()
        if self.membership.refused is not None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise self.membership.refused
        return tasks


@dataclass(frozen=True, slots=True)
class ClusterParts:
    """
    How this process shares the work with others.

    Attributes:
        worker: This process among several workers of the machine; `None`: there is one.
        peers: The other workers of this machine; `None`: there are none.
        leases: The leases among them, and among all nodes; `None`: there are no others.
        node_leader: The lock of the process that runs the background tasks of this machine; `None`: this one.
        nodes: `None`: the database is a file of this machine.
        command_writer: Tells the nodes of a cluster what a command changes; `None`: this is no command, or no cluster.
        node_peers: The other workers of this machine, and the other nodes; `None`: there are no other nodes.
        limit_share: The part of this process in the limits per client.
    """

    worker: WorkerInfo | None = None
    peers: Peers | None = None
    leases: FillLeases | NodeLeases | None = None
    node_leader: LeaderLock | None = None
    nodes: Nodes | None = None
    node_peers: NodePeers | None = None
    command_writer: ChangeWriter | None = None
    limit_share: LimitShare = field(default_factory=LimitShare)

    def __post_init__(self) -> None:
        if self.worker is not None:
            self.limit_share.set_members(self.worker.workers)
        if self.nodes is not None:
            self.nodes.membership.when_count_changes(self.limit_share.set_members)

    @property
    def notifier(self) -> Notifier | None:
        """What tells the other processes of changes; `None`: there are none."""
        return (self.command_writer or self.peers) if self.nodes is None else self.nodes.writer

    @property
    def trust(self) -> CacheTrust | None:
        """Until when this process trusts its caches; `None`: always."""
        return None if self.nodes is None else self.nodes.trust

    @property
    def all_peers(self) -> NodePeers | Peers | None:
        """The other processes, on this machine and elsewhere; `None`: there are none."""
        return self.peers if self.node_peers is None else self.node_peers

    @property
    def cluster(self) -> Cluster | None:
        """What fills need of it."""
        return None if self.leases is None or self.all_peers is None else Cluster(self.leases, self.all_peers)

    @property
    def cluster_leader(self) -> Leader | None:
        """The lock of the process that runs what has to run once for all; `None`: this one."""
        return self.node_leader if self.nodes is None else self.nodes.leader

    @property
    def relay_peers(self) -> Peers | None:
        """The workers one of which answers the API; `None`: this process does, because the database has every fact."""
        return self.peers if self.nodes is None else None


ALONE: Final = ClusterParts()
"""One process with a database of its own."""


@asynccontextmanager
async def open_cluster(config: Config, platform: Platform, worker: WorkerInfo | None) -> AsyncGenerator[ClusterParts]:
    """Open what this process shares with others; nothing connects before `Nodes.start`."""
    peers = None if worker is None else Peers(worker)
    nodes = await _make_nodes(config, platform, peers) if config.database.is_shared else None
    async with AsyncExitStack() as stack:
        leases = _open_leases(config, platform, worker, nodes, stack)
        if peers is not None:
            stack.push_async_callback(peers.aclose)
        node_peers = None
        if nodes is not None and config.cluster.secret:
            node_peers = await _make_node_peers(config, nodes.membership, peers)
            stack.push_async_callback(node_peers.aclose)
        node_leader = None if worker is None else LeaderLock(worker.shared_folder, worker.name)
        yield ClusterParts(worker, peers, leases, node_leader, nodes, node_peers)


def _open_leases(
    config: Config, platform: Platform, worker: WorkerInfo | None, nodes: Nodes | None, stack: AsyncExitStack
) -> FillLeases | NodeLeases | None:
    """Make the leases among the workers of this machine and among several nodes; `None`: this process is alone."""
    grace_s = LEASE_GRACE_S + config.store.timeout_s  # a lookup may go to a bucket
    local = None
    if worker is not None:
        local = FillLeases(worker.shared_folder.leases, worker.name, grace_s=grace_s, timer=platform.timer)
        stack.callback(local.aclose)
    if nodes is None or not config.cluster.secret:
        return local
    leases = NodeLeases(nodes.session, nodes.membership, local, grace_s=grace_s, timer=platform.timer)
    stack.push_async_callback(leases.aclose)
    return leases


async def _make_node_peers(config: Config, membership: Membership, peers: Peers | None) -> NodePeers:
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
    )
    return NodePeers(membership, client, peers, body_bytes_max=config.fetch.body_bytes_max)


async def _make_nodes(config: Config, platform: Platform, peers: Peers | None) -> Nodes:
    session = make_session(config)
    cluster = config.cluster
    identity = NodeIdentity(
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
    local: Peers | None = None,
    stale_max_s: float,
) -> Nodes:
    """Make the parts of a member around its session; `local` are the other workers of its machine."""
    trust = CacheTrust(platform.timer)
    writer = ChangeWriter(session, membership.id, local=local, timer=platform.timer, sleep=platform.sleep)
    reader = ChangeReader(
        session,
        membership,
        writer=writer,
        trust=trust,
        stale_max_s=stale_max_s,
        timer=platform.timer,
        sleep=platform.sleep,
    )
    return Nodes(session, membership, ClusterLeader(session), writer, reader, trust)


def share_records(
    parts: ClusterParts, storage: Storage, blocked_digests: BlockedDigests, responses: ResponseCache | None
) -> RecordSharing:
    """Return how the records in the memory of this process stay those of the store."""
    return RecordSharing(
        changed=_ignore if responses is None else responses.invalidate,
        all_changed=_ignore if responses is None else responses.clear,
        remembered=_ignore if storage.remote is None else storage.remote.bucket.note_seen,
        learn_blocked=blocked_digests.learn_new,
        notifier=parts.notifier,
        trust=parts.trust,
    )


def _ignore(*_what: object) -> None:
    """Without a fast path, or without a bucket, there is nothing to tell."""


def make_session(config: Config) -> DatabaseSession:
    """Make the session of the configured PostgreSQL; it connects later."""
    url = read_database_url(config.database.url)
    require_driver(url)
    plain_url = url.replace("postgresql+psycopg:", "postgresql:", 1)
    return DatabaseSession(plain_url, place=describe_location(url), draw=random.random)
