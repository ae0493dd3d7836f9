"""The balancers of `deploy/cluster/`, in front of nodes on loopback: nginx, HAProxy and Envoy, without TLS."""

from __future__ import annotations

import asyncio
import re
import signal
from asyncio.subprocess import PIPE, STDOUT
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.installed import require
from tests.support.loopback import port_of, reserve
from tests.support.network import authority
from tests.support.nginx import nginx
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

FILES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "envoy": "envoy.yaml"}
BALANCERS = tuple(FILES)
_NODE = re.compile(r"10\.0\.0\.1([1-3])(:|, port_value: )8080")
"""An address of a node in the examples."""
_ONLY_WITH_POSTGRESQL = "# with PostgreSQL"
_TLS = re.compile(r"- transport_socket:.*?\n +filters:", re.DOTALL)


@dataclass(frozen=True)
class Balancer:
    """
    A running balancer.

    Attributes:
        address: Where it listens.
        folder: The folder that it runs in, with its log.
    """

    address: str
    folder: Path


def read_example(name: str) -> str:
    return (ROOT / "deploy" / "cluster" / FILES[name]).read_text("utf-8")


def fill_in(text: str, nodes: Sequence[str], *, has_postgresql: bool) -> str:
    """Return an example with other nodes: as many as there are, and one for the API where each has a database."""
    lines: list[str] = []
    given = text.splitlines()
    for line, following in zip(given, [*given[1:], ""], strict=True):
        match = _NODE.search(line)
        if match is None:
            lines.append(line)
        elif match[1] == "1":
            is_pinned = _ONLY_WITH_POSTGRESQL in following and not has_postgresql
            for number, node in enumerate(nodes[:1] if is_pinned else nodes, 1):
                host, _, port = node.rpartition(":")
                lines.append(_NODE.sub(f"{host}{match[2]}{port}", line).replace("node1", f"node{number}"))
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def balancing(
    name: str, folder: Path, nodes: Sequence[str], *, has_postgresql: bool = True, hashes: bool = True
) -> AsyncGenerator[Balancer]:
    """
    Run a balancer in front of nodes until the end of the block.

    Args:
        name: Which one.
        folder: An empty place for its files.
        nodes: The addresses of the nodes.
        has_postgresql: Whether the nodes share a database, so that each answers the API.
        hashes: Whether an image has a node; else each request goes to the next one.
    """
    text = fill_in(read_example(name), nodes, has_postgresql=has_postgresql)
    if not hashes:
        text = re.sub(r"^ *hash .*\n", "", text, flags=re.MULTILINE)
    if name == "nginx":
        text = text.replace("listen 443 ssl;", "listen 127.0.0.1:PORT;").replace("/var/log/nginx/", "")
        text = re.sub(r"^    ssl_.*\n", "", text, flags=re.MULTILINE)
        async with nginx(folder, text, "") as address:
            yield Balancer(address, folder)
        return
    folder.mkdir()  # noqa: ASYNC240 - before anything runs
    holder = reserve()
    port = port_of(holder)
    if name == "haproxy":
        text = re.sub(r"bind :443 .*", f"bind 127.0.0.1:{port}", text).replace("inter 1s", "inter 100ms")
        text = text.replace("log /dev/log local0", "log stdout format raw local0")
        command = [require("haproxy"), "-db", "-f"]
    else:
        text = _TLS.sub("- filters:", text).replace("interval: 1s", "interval: 0.1s")
        text = text.replace("address: 0.0.0.0, port_value: 443", f"address: 127.0.0.1, port_value: {port}")
        command = [require("envoy"), "--disable-hot-restart", "--concurrency", "1", "-l", "error", "-c"]
    with holder:
        async with _running([*command, FILES[name]], folder, text, port):
            yield Balancer(f"127.0.0.1:{port}", folder)


@asynccontextmanager
async def _running(command: Sequence[str], folder: Path, text: str, port: int) -> AsyncGenerator[None]:
    (folder / command[-1]).write_text(text)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(20):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.01)
        yield
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def check_example(name: str, folder: Path) -> str:
    """Let a balancer judge its example as it is, with a certificate; return what it complains of."""
    certificate = authority().issue_cert("img.example.com")
    for file in ("img.example.com.pem", "img.example.com.key"):
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / file)
    text = read_example(name).replace("/etc/ssl/", f"{folder}/").replace("/var/log/nginx/", f"{folder}/")
    if name == "nginx":
        text = f"events {{}} http {{\n{text}}}\n"
    (folder / FILES[name]).write_text(text)
    path = str(folder / FILES[name])
    command = {
        "nginx": [require("nginx"), "-q", "-t", "-e", "stderr", "-p", str(folder), "-c", path],
        "haproxy": [require("haproxy"), "-q", "-c", "-f", path],
        "envoy": [require("envoy"), "--mode", "validate", "-l", "warn", "-c", path],
    }[name]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    told, _ = await process.communicate()
    return f"{process.returncode} {told.decode()}".removeprefix("0 ").removesuffix(f"configuration '{path}' OK\n")
