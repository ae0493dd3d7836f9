"""Nodes of a cluster without a database: a membership, and a peer API that listens on this machine."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from imgkeep.cluster.nodes.authentication import RequestSigner, RequestVerifier
from imgkeep.cluster.nodes.member import Member, MemberIdentity
from imgkeep.cluster.nodes.node_api import LocalWorkers, make_node_api
from imgkeep.cluster.nodes.peer_client import PeerClient
from imgkeep.cluster.nodes.peer_listener import listen_for_peers
from imgkeep.cluster.nodes.peers import NodePeers
from imgkeep.listening import BACKLOG
from tests.support.peer_fills import FakeBody, FakeImages

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import trustme

    from imgkeep.images.failure_history import RecentFailure

SECRET = "a secret of at least thirty-two characters".replace(" ", "-")
NOW = 1_764_530_000.0


def make_member(name: str, url: str) -> Member:
    return Member(name, name.partition("/")[0], url, "1", datetime(2026, 11, 30, tzinfo=UTC))


class FakeMembership:
    """The membership of the member `here/1`, as a test says."""

    def __init__(self, *others: Member) -> None:
        self.id = "here/1"
        self.identity = MemberIdentity(
            self.id, "here", "host", "http://127.0.0.1:9", "1", SECRET, "store", is_only_process=True
        )
        self.members = {each.id: each for each in (make_member(self.id, "http://127.0.0.1:9"), *others)}
        self.silence_s = 0.0
        self.interval_s = 5.0
        self._gone: list[Callable[[str], None]] = []

    def when_gone(self, callback: Callable[[str], None]) -> None:
        self._gone.append(callback)

    def end(self, member: str) -> None:
        del self.members[member]
        for told in self._gone:
            told(member)


@dataclass
class FakeNode:
    """A node whose peer API listens: `there`, with the member `there/1`."""

    images: FakeImages = field(default_factory=FakeImages)
    objects: dict[str, FakeBody] = field(default_factory=dict)
    failures: list[RecentFailure] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    now: float = NOW
    silence_s: float = 0
    port: int = 0
    member: Member = field(init=False)

    async def fetch_object(self, name: str) -> Any:
        return self.objects.get(name)

    def is_confirmed_within(self, seconds: float) -> bool:
        return self.silence_s <= seconds

    async def list_failures(self) -> list[RecentFailure]:
        return self.failures


@asynccontextmanager
async def node_listening(
    *, workers: LocalWorkers | None = None, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[FakeNode]:
    """Run the peer API of a node until the end of the block."""
    node = FakeNode()
    images: Any = node.images
    app = make_node_api(
        images,
        workers=workers,
        wait=node.images.wait_for_fill,
        fetch_object=node.fetch_object,
        fetch_picture=node.fetch_object,
        failures=node.list_failures,
        is_confirmed_within=node.is_confirmed_within,
    )
    sock = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    node.port = sock.getsockname()[1]
    url = f"http{'' if ssl_context is None else 's'}://127.0.0.1:{node.port}"
    node.member = make_member("there/1", url)
    verifier = RequestVerifier(SECRET, url, now=lambda: node.now)
    refused = node.refused.update
    async with listen_for_peers(
        app, [sock], verifier, ssl_context=ssl_context, refused=lambda reason: refused([reason])
    ):
        yield node


def make_signer(*, secret: str = SECRET, now: float = NOW) -> RequestSigner:
    numbers = count()
    return RequestSigner(secret, "here/1", now=lambda: now, draw_nonce=lambda: f"{next(numbers):032x}")


@asynccontextmanager
async def peers_of(
    membership: FakeMembership,
    *,
    secret: str = SECRET,
    now: float = NOW,
    ssl_context: ssl.SSLContext | None = None,
    local: Any = None,
    stall_timeout_s: float = 20,
) -> AsyncIterator[tuple[NodePeers, Counter[str]]]:
    """Give the peers of the member `here/1`, and the outcomes of its requests."""
    outcomes: Counter[str] = Counter()
    client = PeerClient(
        make_signer(secret=secret, now=now),
        stall_timeout_s=stall_timeout_s,
        ssl_context=ssl_context,
        count=lambda outcome: outcomes.update([outcome]),
    )
    members: Any = membership
    peers = NodePeers(members, client, local, body_bytes_max=1_000_000)
    yield peers, outcomes
    await peers.aclose()


def write_tls_files(folder: Path, authority: trustme.CA) -> dict[str, str]:
    """Write a certificate for this machine; return the settings of TLS."""
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: str(folder / f"{name}.pem") for name in ("tls_certificate", "tls_key", "tls_ca")}
    certificate.private_key_pem.write_to_path(files["tls_key"])
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(files["tls_certificate"], append=True)
    authority.cert_pem.write_to_path(files["tls_ca"])
    return files
