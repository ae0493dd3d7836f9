"""Listening sockets: one address, several, both families; and the messages for unusable ones."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import aiohttp
import pytest

from imgkeep.config import Config, ConfigError, Server
from imgkeep.config.schema import Cluster
from imgkeep.listening import format_address, listen, listen_for_nodes, listen_for_workers
from imgkeep.web.connection_limit import ConnectionLimit
from tests.support.program import cannot, environment, need_strace, serving
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path


def need_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        cannot("this machine has no IPv6")


def reach(host: str, port: int) -> bool:
    """Whether a server listens there."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


@table(
    ("host", "reached"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        (("127.0.0.1", "::1"), {"127.0.0.1", "::1"}),
        (("127.0.0.1", "127.0.0.2"), {"127.0.0.1", "127.0.0.2"}),
        ("::", {"127.0.0.1", "127.0.0.2", "::1"}),
        ("0.0.0.0", {"127.0.0.1", "127.0.0.2"}),
        (("0.0.0.0", "::"), {"127.0.0.1", "127.0.0.2", "::1"}),
        (("127.0.0.1", "::"), {"127.0.0.1", "::1"}),
        ("", {"127.0.0.1", "127.0.0.2", "::1"}),
        (("localhost", "127.0.0.1"), {"127.0.0.1"}),
    ],
)
def test_server_listens_on_its_addresses_only(host: str | tuple[str, ...], reached: set[str]) -> None:
    need_ipv6()
    with ExitStack() as stack:
        sockets = [stack.enter_context(sock) for sock in listen(Server(host=host, port=0))]
        ports = {sock.getsockname()[1] for sock in sockets}
        assert len(ports) == 1, "one port at all addresses"
        port = ports.pop()
        found = {each for each in ("127.0.0.1", "127.0.0.2", "::1") if reach(each, port)}
    assert found == reached | ({"::1"} & found if "localhost" in host else set())


def test_every_worker_has_a_socket_at_every_address() -> None:
    need_ipv6()
    with ExitStack() as stack:
        sets = listen_for_workers(Config(server=Server(host=("127.0.0.1", "::1"), port=0, workers=3)), stack)
        names = [[sock.getsockname()[:2] for sock in sockets] for sockets in sets]
    assert len(sets) == 3
    assert names[0] == names[1] == names[2]
    assert [host for host, _ in names[0]] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("workers", [1, 2])
def test_port_in_use_names_the_setting(workers: int) -> None:
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(host="127.0.0.1", port=port, workers=workers)
        with pytest.raises(OSError, match=rf"^\[Errno 98\] server.port: .* 127.0.0.1:{port} already") as error:
            listen_for_workers(Config(server=server), stack) if workers > 1 else listen(server)
        assert error.value.errno == errno.EADDRINUSE


def test_workers_share_the_port_for_other_nodes() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = Cluster(advertise_url="http://node.test:8081", listen=address)
    config = Config(server=Server(host="127.0.0.1", port=0, workers=2), cluster=cluster)
    with ExitStack() as stack:
        for _ in range(2):
            [sock] = listen_for_nodes(cluster, shared=True)
            stack.enter_context(sock)
            assert format_address(*sock.getsockname()) == address
        with pytest.raises(OSError, match=rf"cluster.listen: another program listens at {address} already"):
            listen_for_nodes(cluster)
        with pytest.raises(OSError, match=r"cluster.listen: another program"):
            listen_for_workers(config, stack)
    assert listen_for_nodes(Cluster()) == []


def test_node_listens_at_all_addresses_without_a_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    sockets = listen_for_nodes(Cluster(advertise_url=f"http://node.test:{port}"))
    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        assert {sock.getsockname()[1] for sock in sockets} == {port}
        assert reach("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "server.host: 192.0.2.1 is not an address of this machine"),
        ("2001:db8::1", "server.host: 2001:db8::1 is not an address of this machine"),
        ("no-such-host.invalid", "server.host: 'no-such-host.invalid' does not resolve to an address: "),
        ("a..b", "server.host: 'a..b' does not resolve to an address: "),
    ],
)
def test_unusable_address_is_named(host: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        listen(Server(host=host, port=0))


async def start_with_a_failing_bind(folder: Path, error: str, **settings: str) -> tuple[int | None, str]:
    """Start a server without a usable address; return its exit status and its last line."""
    need_strace()
    strace = ("strace", "-f", "-o", "/dev/null", "-e", "trace=bind", "-e", f"inject=bind:error={error}")
    process = await asyncio.create_subprocess_exec(
        *strace,
        *(sys.executable, "-m", "imgkeep", "serve"),
        cwd=folder.parent,
        env=environment(folder, **settings),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert "Traceback" not in err.decode()
    return process.returncode, err.decode().splitlines()[-1]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_missing_ipv6_is_named(tmp_path: Path, workers: str) -> None:
    status, line = await start_with_a_failing_bind(
        tmp_path / "store", "EADDRNOTAVAIL", server__host="::", server__workers=workers
    )
    assert line == "imgkeep: server.host: this machine has no IPv6, so it cannot listen at ::: use an IPv4 address"
    assert status == 2


async def test_missing_permission_is_named(tmp_path: Path) -> None:
    status, line = await start_with_a_failing_bind(tmp_path / "store", "EACCES", server__port="80")
    assert line.startswith("imgkeep: server.port: no permission to listen at 127.0.0.1:80: choose a port from 1024 on")
    assert status == 2


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_dual_stack_server_sees_ipv4_clients_as_such(tmp_path: Path, workers: str) -> None:
    need_ipv6()
    async with serving(tmp_path / "store", server__host="::", server__workers=workers) as imgkeep:
        port = int(imgkeep.address.rpartition(":")[2])
        async with aiohttp.ClientSession() as session:
            for host in ("127.0.0.1", "[::1]"):
                async with session.get(f"http://{host}:{port}/img") as response:
                    assert response.status == 400
        imgkeep.process.terminate()
        await imgkeep.process.wait()
    clients = [line.split('"client":"')[1].split('"')[0] for line in imgkeep.log if '"client":"' in line]
    assert sorted(clients) == ["127.0.0.1", "::1"]


def test_connections_of_an_ipv4_client_count_as_one_in_both_spellings() -> None:
    refused: list[str] = []
    limit = ConnectionLimit(2, (), refused.append)
    assert limit.acquire("::ffff:192.0.2.7") == ("192.0.2.7",)
    assert limit.acquire("192.0.2.7") == ("192.0.2.7",)
    assert limit.acquire("::ffff:192.0.2.7") is None
    assert limit.acquire("::ffff:127.0.0.1") == (), "a program of this machine"
    assert refused == ["connections"]
