"""The peer API of a node as its services serve it, asked by a member that knows it from the database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trustme

from imgkeep.bootstrap.cluster import ClusterParts, open_cluster
from imgkeep.bootstrap.peer_listeners import serve_nodes
from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.services import open_services
from imgkeep.cluster.nodes.change_reader import Receiver
from imgkeep.config import load
from imgkeep.core.errors import SourceNotFound
from imgkeep.core.records import Digest, Key, Subject
from imgkeep.observability.metrics import Metrics
from tests.support.images import png_of
from tests.support.loopback import port_of, reserve
from tests.support.nodes import write_tls_files
from tests.support.peer_fills import read_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from imgkeep.bootstrap.services import Services


@asynccontextmanager
async def node(name: str, folder: Path, url: str, tls: dict[str, str]) -> AsyncIterator[tuple[ClusterParts, Services]]:
    """Run a node whose bucket is away, without background tasks."""
    with reserve() as holder:  # until the end: the kernel gives the port to no other program meanwhile
        config = load(
            {
                "store": {
                    "url": "s3://images?region=us-east-1&endpoint=http://127.0.0.1:1",
                    "fallback": f"file:{folder}/{name}",
                },
                "database": {"url": url},
                "cluster": {
                    "name": name,
                    "secret": "s" * 32,
                    "advertise_url": f"http{'s' * bool(tls)}://127.0.0.1:{port_of(holder)}",
                    "listen": f"127.0.0.1:{port_of(holder)}",
                    **tls,
                },
            },
            {},
        )
        metrics = Metrics()
        async with open_cluster(config, Platform(), None, metrics.peer_asked) as parts:
            assert parts.nodes is not None
            async with open_services(config, Platform(), parts, metrics) as services:
                receiver = Receiver(services.learn, services.learn_everything, services.settle)
                tasks = await parts.nodes.start(parts.nodes.make_reader(receiver))
                try:
                    async with serve_nodes(config, services, parts):
                        yield parts, services
                finally:
                    await parts.nodes.membership.leave()
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)


async def store_in_fallback(services: Services, data: bytes) -> str:
    """Store an object on the disk of a node alone; return its name."""
    assert services.storage.remote is not None
    fallback = services.storage.remote.fallback
    assert fallback is not None
    draft = await fallback.disk.begin(len(data))
    await draft.write(data)
    name = f"{draft.digest}.png"
    await fallback.put_object(draft, name)
    await draft.aclose()
    return name


async def test_nodes_find_each_other_in_the_database(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = write_tls_files(tmp_path, trustme.CA())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    data = png_of(100_000)
    async with (
        node("a", tmp_path, postgresql_url, tls) as (_, holder),
        node("b", tmp_path, postgresql_url, tls) as (parts, asking),
    ):
        peers = parts.node_peers
        assert peers is not None
        assert parts.nodes is not None
        await parts.nodes.membership.beat()
        subject = Subject(Key("c" * 64), "host.test", None)
        holder.failures.note(subject, SourceNotFound("404", origin_status=404))
        assert await peers.failures() == [holder.failures.list()]

        name = await store_in_fallback(holder, data)
        body = await peers.fetch_object("a", name)
        assert body is not None
        assert await read_body(body) == data
        await body.aclose()

        await holder.remover.blocked.learn([Digest(name.partition(".")[0])])
        assert await peers.fetch_object("a", name) is None, "a blocked digest"
        assert b'imgkeep_peer_requests_total{outcome="answered"} 3.0' in asking.metrics.page()
