"""TLS between nodes, and the messages for files that cannot be used."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
import trustme

from imgkeep.bootstrap.peer_tls import make_client_context, make_server_context, require_tls_files
from imgkeep.bootstrap.preflight import check_machine
from imgkeep.cluster.nodes import peer_listener
from imgkeep.config import Config, ConfigError
from imgkeep.config.schema import Cluster, Database, Store
from imgkeep.core.errors import Busy
from imgkeep.images.peer_fill import RemoteFill
from tests.support.nodes import FakeMembership, node_listening, peers_of, write_tls_files
from tests.support.peer_fills import FakeBody, make_head
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

KEY = "a" * 64
URL = "https://127.0.0.1:8081"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def settings(tmp_path: Path, authority: trustme.CA) -> Cluster:
    """Settings of a node with a certificate of an own authority."""
    return msgspec.convert({"advertise_url": URL, **write_tls_files(tmp_path, authority)}, Cluster)


async def test_nodes_speak_tls(settings: Cluster) -> None:
    async with node_listening(ssl_context=make_server_context(settings)) as node:
        node.images.fills[KEY] = (FakeBody(b"data" * 1000), make_head())
        members = FakeMembership(node.member)
        async with (
            peers_of(members, ssl_context=make_client_context(settings)) as (peers, _),
            peers.follow("there/1", KEY) as fill,
        ):
            assert isinstance(fill, RemoteFill)
            assert b"".join([data async for _, data in fill.steps]) == b"data" * 1000


async def test_certificate_of_an_unknown_authority_is_refused(settings: Cluster) -> None:
    async with node_listening(ssl_context=make_server_context(settings)) as node:
        stranger = Cluster(advertise_url=URL)
        members = FakeMembership(node.member)
        async with peers_of(members, ssl_context=make_client_context(stranger)) as (peers, outcomes):
            with pytest.raises(Busy):
                await peers.wait("there/1", KEY)
    assert outcomes == {"unreachable": 1}
    assert node.images.waited_for == []


async def test_flood_of_handshakes_keeps_no_peer_out(settings: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_listener, "STRANGERS_MAX", 4)
    async with node_listening(ssl_context=make_server_context(settings)) as node:
        strangers = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(50)]
        members = FakeMembership(node.member)
        async with peers_of(members, ssl_context=make_client_context(settings)) as (peers, _):
            await peers.wait("there/1", KEY)
        assert node.refused["connections"] >= 45
        for _, writer in strangers:
            writer.close()


async def test_plain_http_at_a_port_with_tls_is_cut_off(settings: Cluster) -> None:
    async with node_listening(ssl_context=make_server_context(settings)) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        await until(lambda: node.refused["form"])


def test_node_without_settings_needs_no_context() -> None:
    assert make_server_context(Cluster()) is None
    assert make_client_context(Cluster(advertise_url="http://127.0.0.1:1")) is None


@pytest.mark.parametrize("setting", ["tls_certificate", "tls_key", "tls_ca"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"], ids=["missing", "empty", "nonsense"])
def test_unusable_file_names_its_setting(
    settings: Cluster, tmp_path: Path, setting: str, content: bytes | None
) -> None:
    path = tmp_path / "unusable.pem"
    if content is not None:
        path.write_bytes(content)
    files = {name: getattr(settings, name) for name in ("tls_certificate", "tls_key", "tls_ca")}
    with pytest.raises(ConfigError, match=rf"^cluster.tls_\w+: .*{path}") as error:
        require_tls_files(Cluster(advertise_url=URL, **{**files, setting: str(path)}))
    if content is None:
        assert str(error.value) == f"cluster.{setting}: {path} cannot be read: No such file or directory"


def test_key_of_another_certificate_or_with_a_passphrase_is_refused(
    settings: Cluster, tmp_path: Path, authority: trustme.CA
) -> None:
    other = tmp_path / "other.pem"
    authority.issue_cert("other.test").private_key_pem.write_to_path(str(other))
    with pytest.raises(ConfigError, match="without a passphrase"):
        make_server_context(Cluster(advertise_url=URL, tls_certificate=settings.tls_certificate, tls_key=str(other)))


async def test_check_names_the_setting_of_tls(tmp_path: Path, settings: Cluster) -> None:
    cluster = Cluster(advertise_url=URL, tls_certificate=settings.tls_certificate, tls_key="/no/key")
    folder = Store(url=f"file:{tmp_path}")
    with pytest.raises(ConfigError) as error:
        await check_machine(Config(store=folder, database=Database(url=f"sqlite:{tmp_path}/i.db"), cluster=cluster))
    assert error.value.messages == ("cluster.tls_key: /no/key cannot be read: No such file or directory",)
