"""
Chooses how processes share the work: alone, as workers of one machine, as members of a cluster, or both.

Services get the same three interfaces in every case: leases, peers and a leader. None of them asks which case it is.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from imgkeep.cluster.workers.leader import NodeLeader
from imgkeep.cluster.workers.leases import WorkerLeases
from imgkeep.cluster.workers.peers import WorkerPeers
from imgkeep.images.interfaces import Cluster
from imgkeep.images.limit_share import LimitShare
from imgkeep.images.record_sharing import RecordSharing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from typing import TypeAlias

    from imgkeep.bootstrap.nodes import Nodes
    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.storage import Storage
    from imgkeep.cluster.nodes.change_writer import ChangeWriter
    from imgkeep.cluster.nodes.leader import ClusterLeader
    from imgkeep.cluster.nodes.leases import NodeLeases
    from imgkeep.cluster.nodes.peers import NodePeers
    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.images.blocked_digests import BlockedDigests
    from imgkeep.images.cache_trust import CacheTrust
    from imgkeep.images.interfaces import Notifier
    from imgkeep.web.fastpath.response_cache import ResponseCache

    Leader: TypeAlias = NodeLeader | ClusterLeader

LEASE_GRACE_S: Final = 10
"""
Time for which peers see a lease after its image was stored, beyond what `store.timeout_s` lets a lookup take: a lookup
that began before the image was stored may end after it.
"""


@dataclass(frozen=True, slots=True)
class ClusterParts:
    """
    How this process shares the work with others.

    Attributes:
        worker: This process among several workers of the machine; `None`: there is one.
        peers: The other workers of this machine; `None`: there are none.
        worker_leases: The leases among them.
        node_leader: The lock of the worker that runs what has to run once on this machine; `None`: this process does.
        nodes: What this process is a member by; `None`: the database is a file of this machine.
        node_leases: The leases among the processes of all nodes; `None`: there are no other nodes.
        node_peers: The other workers of this machine, and the other nodes; `None`: there are no other nodes.
        command_writer: Tells the nodes of a cluster what a command changes; `None`: this is no command, or no cluster.
        limit_share: The part of this process in the limits per client.
    """

    worker: WorkerInfo | None = None
    peers: WorkerPeers | None = None
    worker_leases: WorkerLeases | None = None
    node_leader: NodeLeader | None = None
    nodes: Nodes | None = None
    node_leases: NodeLeases | None = None
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
    def all_peers(self) -> NodePeers | WorkerPeers | None:
        """The other processes, on this machine and elsewhere; `None`: there are none."""
        return self.peers if self.node_peers is None else self.node_peers

    @property
    def cluster(self) -> Cluster | None:
        """What fills need of it."""
        leases, peers = self.node_leases or self.worker_leases, self.all_peers
        return None if leases is None or peers is None else Cluster(leases, peers)

    @property
    def cluster_leader(self) -> Leader | None:
        """The lock of the process that runs what has to run once for all; `None`: this one."""
        return self.node_leader if self.nodes is None else self.nodes.leader

    @property
    def relay_peers(self) -> WorkerPeers | None:
        """The workers one of which answers the API; `None`: this process does, because the database has every fact."""
        return self.peers if self.nodes is None else None


ALONE: Final = ClusterParts()
"""One process with a database of its own."""


@asynccontextmanager
async def open_cluster(
    config: Config, platform: Platform, worker: WorkerInfo | None, count: Callable[[str], None]
) -> AsyncGenerator[ClusterParts]:
    """
    Open what this process shares with others; nothing connects before `Nodes.start`.

    Args:
        config: The configuration.
        platform: Clocks.
        worker: One of several workers; `None`: there is one process.
        count: Callback with the outcome of each request to a node, as that of `PeerClient`.
    """
    peers = None if worker is None else WorkerPeers(worker)
    grace_s = LEASE_GRACE_S + config.store.timeout_s  # a lookup may go to a bucket
    async with AsyncExitStack() as stack:
        local, node_leader = None, None
        if worker is not None:
            local = WorkerLeases(worker.shared_folder.leases, worker.name, grace_s=grace_s, timer=platform.timer)
            stack.callback(local.aclose)
            node_leader = NodeLeader(worker.shared_folder, worker.name)
        if peers is not None:
            stack.push_async_callback(peers.aclose)
        if not config.database.is_shared:
            yield ClusterParts(worker, peers, local, node_leader)
            return
        from imgkeep.bootstrap.nodes import open_nodes  # noqa: PLC0415 - one node starts without it

        nodes, leases, node_peers = await open_nodes(
            config, platform, stack, peers, local, grace_s=grace_s, count=count
        )
        yield ClusterParts(worker, peers, local, node_leader, nodes, leases, node_peers)


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
