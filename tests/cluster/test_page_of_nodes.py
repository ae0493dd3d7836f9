"""
`docs/cluster.md`: the commands that lead from one node to three, as a reader types them.

Only addresses, ports, the bucket, the link, and the command that becomes the database's user are replaced. The
commands of the operating system (nginx, systemd) are not run: nginx has the configuration that the page names.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession

from tests.support.balancers import balancing
from tests.support.checkout import Shell
from tests.support.images import make_image
from tests.support.loopback import port_of, reserve
from tests.support.program import ROOT, cannot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.postgresql import PostgresqlServer
    from tests.support.s3.servers import S3Server

PAGE = (ROOT / "docs" / "cluster.md").read_text("utf-8")
NODES = ("node1", "node2", "node3")
IMAGE = make_image("png")


def read_blocks() -> list[str]:
    """Return the blocks of the steps, in order: database, configuration, secrets, node, start, and two checks."""
    steps = PAGE.partition("## From one node to three")[2].partition("\n## ")[0]
    return re.findall(r"^```(?:sh|toml)\n(.*?)^```", steps, re.DOTALL | re.MULTILINE)


class Reader:
    """A reader of the page, whose machines are addresses of this one."""

    def __init__(self, folder: Path, database: PostgresqlServer, bucket: S3Server, link: str) -> None:
        self._holders = [reserve() for _ in range(1 + len(NODES))]
        self.port, *self._peer_ports = map(port_of, self._holders)
        self.replaced = {
            "sudo -u postgres psql": f"psql -h 127.0.0.1 -p {database.port} -U imgkeep -d postgres",
            "@10.0.0.20/": f"@127.0.0.1:{database.port}/",
            "s3://my-images?region=eu-central-1": (
                f"s3://{bucket.bucket}?region=us-east-1&addressing=path&endpoint={bucket.endpoint}"
            ),
            "https://images.example/a.png": link,
            '"images.example"': '"127.0.0.1"',
            "10.0.0.": "127.0.0.",
            ":8080": f":{self.port}",
        }
        self._folder = folder
        self._variables = {
            "AWS_ACCESS_KEY_ID": bucket.key,
            "AWS_SECRET_ACCESS_KEY": bucket.secret,
            "IMGKEEP_SERVER__PORT": str(self.port),
            "IMGKEEP_FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
            "IMGKEEP_STORE__FREE_BYTES_MIN": "0",
        }

    def read(self, block: str, node: str = "node1") -> str:
        """Return a block as it is typed on a node. Nodes on one machine need a port each for their peers."""
        if node != "node1":
            block = block.replace("node1", node).replace("10.0.0.11", f"10.0.0.1{node[-1]}")
        for old, new in self.replaced.items():
            block = block.replace(old, new)
        return block.replace(":8081", f":{self._peer_ports[NODES.index(node)]}")

    def close(self) -> None:
        for holder in self._holders:
            holder.close()

    def address(self, node: str) -> str:
        return f"127.0.0.1{node[-1]}"

    def shell(self, name: str) -> Shell:
        """Return the shell of a machine, in a folder of its own."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return Shell(folder, **self._variables)


@pytest.fixture
def database(postgresql: PostgresqlServer) -> Iterator[PostgresqlServer]:
    yield postgresql
    postgresql.execute("DROP DATABASE IF EXISTS images WITH (FORCE)")
    postgresql.execute("DROP ROLE IF EXISTS images")


async def test_reader_comes_from_one_node_to_three(
    tmp_path: Path, database: PostgresqlServer, bucket: Callable[[str], S3Server], origin: FakeOrigin
) -> None:
    for program in ("psql", "curl", "nginx"):
        if shutil.which(program, path="/usr/bin:/usr/sbin:/usr/local/bin") is None:
            cannot(f"{program} is not installed")
    reader = Reader(tmp_path, database, bucket("versitygw"), origin.gives("/a.png", IMAGE))
    make_database, configuration, secrets, node_block, start, use, check = read_blocks()
    admin = reader.shell("admin")
    await admin.run(reader.read(make_database), "psql")
    await admin.run(reader.read(secrets), "secrets")
    (tmp_path / "admin" / "config.toml").write_text(reader.read(configuration))
    async with AsyncExitStack() as stack:
        stack.callback(reader.close)

        async def add(node: str) -> None:
            shell = reader.shell(node)
            for name in ("config.toml", "environment"):
                shutil.copy(tmp_path / "admin" / name, tmp_path / node)
            await shell.run(reader.read(node_block, node), "settings")
            commands = reader.read(start, node)
            if node != "node1":
                commands = commands.replace("imgkeep check --live\n", "")
            url = f"http://{reader.address(node)}:{reader.port}/"
            await stack.enter_async_context(shell.serving(commands, url, "imgkeep", end=signal.SIGKILL))

        async with asyncio.TaskGroup() as tasks:
            for node in NODES:
                tasks.create_task(add(node))
        shell = reader.shell("node1")
        assert "images/" in await shell.run(reader.read(use), "use")
        told = await shell.run(reader.read(check), "readyz")
        assert told.count('"status":"ready"') == told.count('"cluster":{"status":"ok"') == 3, told
        addresses = [f"{reader.address(node)}:{reader.port}" for node in NODES]
        proxy = await stack.enter_async_context(balancing("nginx", tmp_path / "nginx", addresses))
        async with ClientSession() as session:
            for _ in range(3):
                async with session.get(f"http://{proxy.address}/img", params={"src": origin.url("/a.png")}) as response:
                    assert (response.status, await response.read()) == (200, IMAGE)
    assert origin.asked("/a.png") == 1
