"""
Three nodes of imgkeep, each on a host of its own, with what they share: PostgreSQL, a bucket, and nginx in front.

All are processes that are bound to no event loop, so that many tests can share them. They end with the tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Final

from tests.support.installed import require
from tests.support.loopback import HOST, port_of, reserve
from tests.support.network_hosts import LEASHED, network
from tests.support.postgresql import PostgresqlServer
from tests.support.program import START_TIMEOUT_S, cannot, environment
from tests.support.s3.process import ServerProcess
from tests.support.s3.programs import BUCKET, KINDS
from tests.support.s3.servers import S3Server
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.network_hosts import Host, Network

TOKEN: Final = "token-of-the-nodes-of-the-tests"
SECRET: Final = "secret-of-the-cluster-of-the-tests-0123456789"
SIGNING_KEY: Final = "key-of-the-nodes-of-the-tests"
PORT: Final = 8080
PEER_PORT: Final = 8090
NODES: Final = 3

_SHIFTED: Final = """
import datetime, time
import imgkeep.clock
_read, _read_ns, _SHIFT_S = time.time, time.time_ns, {shift_s}
time.time = lambda: _read() + _SHIFT_S
time.time_ns = lambda: _read_ns() + int(_SHIFT_S * 1e9)
class _Shifted:
    now = staticmethod(lambda tz: datetime.datetime.now(tz) + datetime.timedelta(seconds=_SHIFT_S))
imgkeep.clock.datetime = _Shifted
"""
"""`sitecustomize` of a process whose clock is wrong: Python imports it before anything else."""

_NGINX: Final = """
user root;
master_process off;
daemon off;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    access_log off;
    client_max_body_size 8m;
    upstream imgkeep {{
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1000;
        location / {{
            proxy_pass http://imgkeep;
            proxy_buffering off;
            proxy_buffer_size 128k; proxy_buffers 4 128k;
            proxy_connect_timeout 1s;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""


@dataclass
class Node:
    """
    An imgkeep on a host, with a data folder.

    Attributes:
        settings: As `environment` takes them.
        clock_shift_s: Seconds by which its clock is wrong, from the next start on.
        log: What it wrote, of all its runs.
    """

    host: Host
    folder: Path
    settings: dict[str, str]
    clock_shift_s: float = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the node and do not wait for it."""
        assert not self.is_running
        # The parent, for the kernel, is the thread that starts a process: the node would end with that thread.
        assert threading.current_thread() is threading.main_thread()
        variables = environment(self.folder, **self.settings)
        if self.clock_shift_s:
            place = self.folder.with_suffix(".clock")
            place.mkdir(exist_ok=True)
            (place / "sitecustomize.py").write_text(_SHIFTED.format(shift_s=self.clock_shift_s))
            variables["PYTHONPATH"] = f"{place}:{variables['PYTHONPATH']}"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*LEASHED, *self.host.enter, sys.executable, "-m", "imgkeep", "serve"],
                cwd=self.folder.parent,
                env=variables,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until the node answers."""
        block_until(lambda: not self.is_running or self.answers("/healthz"), within_s=START_TIMEOUT_S)
        assert self.is_running, f"{self.name} did not start: {self.log.read_text('utf-8')[-5000:]}"

    def start(self) -> None:
        self.launch()
        self.wait()

    def answers(self, path: str) -> bool:
        """Whether the node answers 200."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def ask_on_its_host(self, path: str) -> tuple[int, bool]:
        """Ask from the node's own host, as a client that is cut off with it; return status and `Retry-After`."""
        form = "%{http_code} %header{retry-after}"
        command = (*self.host.enter, "curl", "-s", "-m", "30", "-o", "/dev/null", "-w", form)
        done = subprocess.run([*command, f"http://{self.address}{path}"], capture_output=True, text=True, check=False)
        status, _, wait = done.stdout.partition(" ")
        return int(status), bool(wait)

    def kill(self) -> None:
        """End the node and all that it started, as a loss of power does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> int:
        """End the node as an operator does; return its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(START_TIMEOUT_S)

    def lose_disk(self) -> None:
        """Remove everything that a dead node has on its disk."""
        assert not self.is_running
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Surroundings:
    """
    What nodes need and can share with the nodes of other tests.

    Attributes:
        hosts: Those for nodes: one more than nodes start with.
        s3: A server, as seen from every host and from the tests; each use makes a bucket of its own.
    """

    network: Network
    postgresql: PostgresqlServer
    database_host: Host
    s3: S3Server
    hosts: Sequence[Host]
    numbers: count[int] = field(default_factory=lambda: count(1))

    def make_bucket(self) -> S3Server:
        bucket = replace(self.s3, bucket=f"nodes-{next(self.numbers)}")
        bucket.make_bucket()
        return bucket

    def restore(self) -> None:
        """Connect and start what a test has left disconnected or stopped."""
        for host in (*self.hosts, self.database_host):
            host.restore()
        if not self.postgresql.is_running:
            self.postgresql.start()
        if not self.s3.process.running:
            self.s3.start()


@contextmanager
def surroundings(folder: Path, **settings: str) -> Iterator[Surroundings]:
    """Run PostgreSQL, with these settings, and an S3 server on hosts of their own until the end of the block."""
    with ExitStack() as stack:
        net = stack.enter_context(network())
        hosts = [net.add(f"node-{number}") for number in range(NODES + 1)]
        database_host, s3_host = net.add("database"), net.add("bucket")
        postgresql = PostgresqlServer(database_host.address, database_host.enter, settings)
        stack.callback(postgresql.remove)
        postgresql.start()
        s3 = _versitygw(s3_host, folder)
        stack.callback(s3.process.holder.close)
        stack.callback(s3.stop)
        s3.start()
        yield Surroundings(net, postgresql, database_host, s3, hosts)


def _versitygw(host: Host, folder: Path) -> S3Server:
    kind, holder = KINDS["versitygw"], reserve()
    data = folder / "bucket"
    data.mkdir()
    command = [
        *(*host.enter, require("versitygw"), "--access", kind.key, "--secret", kind.secret),
        *("--port", f"{host.address}:{port_of(holder)}", "--region", "us-east-1", "--quiet", "posix", str(data)),
    ]
    process = ServerProcess(command, folder, holder, host.address)
    return S3Server("versitygw", f"http://{host.address}:{port_of(holder)}", kind.key, kind.secret, BUCKET, process)


@dataclass
class Nodes:
    """
    Nodes of one cluster behind nginx, which asks them in turn.

    Attributes:
        database_url: Of a database of their own.
        proxy: The address of nginx.
        settings: Those that all nodes have.
    """

    around: Surroundings
    folder: Path
    database_url: str
    bucket: S3Server
    settings: dict[str, str]
    members: list[Node] = field(default_factory=list)
    proxy: str = ""

    def add(self, host: Host, **settings: str) -> Node:
        """Add a node, with settings of its own, and do not start it."""
        folder = self.folder / host.name / "data"
        folder.parent.mkdir(exist_ok=True)
        own = {
            "server__host": host.address,
            "server__port": str(PORT),
            "store__fallback": f"file:{folder}",
            "cluster__name": host.name,
            "cluster__advertise_url": f"http://{host.address}:{PEER_PORT}",
        }
        self.members.append(Node(host, folder, {**self.settings, **own, **settings}))
        return self.members[-1]

    def restore(self) -> None:
        """Bring back whatever a test has taken away."""
        self.around.restore()
        for node in self.members:
            if not node.is_running:
                node.launch()
        for node in self.members:
            node.wait()


def shared_settings(around: Surroundings, bucket: S3Server, database_url: str) -> dict[str, str]:
    """Return the settings that the nodes of a cluster share."""
    return {
        "store__url": f"s3://{bucket.bucket}?region=us-east-1&addressing=path&endpoint={bucket.endpoint}",
        "AWS_ACCESS_KEY_ID": bucket.key,
        "AWS_SECRET_ACCESS_KEY": bucket.secret,
        "database__url": database_url,
        "cluster__secret": SECRET,
        "fetch__allow_networks": around.network.range,
        "security__api_tokens": TOKEN,
        "security__signing_keys": SIGNING_KEY,
        # All clients are one.
        **{f"limits__{name}": "0" for name in ("fills_per_minute", "fills_concurrent", "misses_per_minute")},
        **{f"limits__{name}": "0" for name in ("fill_bytes_per_day", "connections")},
    }


@contextmanager
def three_nodes(around: Surroundings, folder: Path, **settings: str) -> Iterator[Nodes]:
    """Run three nodes on an empty database and an empty bucket, and nginx in front, until the end of the block."""
    url, bucket = around.postgresql.make_database(), around.make_bucket()
    nodes = Nodes(around, folder, url, bucket, {**shared_settings(around, bucket, url), **settings})
    with ExitStack() as stack:
        stack.callback(around.postgresql.drop_database, url)
        for host in around.hosts[:NODES]:
            node = nodes.add(host)
            stack.callback(node.kill)
            node.launch()
        for node in nodes.members:
            node.wait()
        nodes.proxy = stack.enter_context(round_robin(folder / "nginx", [node.address for node in nodes.members]))
        try:
            yield nodes
        finally:
            around.restore()


@contextmanager
def round_robin(folder: Path, upstreams: Sequence[str]) -> Iterator[str]:
    """Run nginx, which asks nodes in turn, and yield its address."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        cannot("nginx is not installed (Debian: apt-get install nginx-light)")
    folder.mkdir()
    holder = reserve()
    servers = " ".join(f"server {address} max_fails=0;" for address in upstreams)
    (folder / "nginx.conf").write_text(_NGINX.format(port=port_of(holder), servers=servers))
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    process = ServerProcess(command, folder, holder)
    try:
        process.launch()
        block_until(lambda: process.ready)
        yield f"{HOST}:{port_of(holder)}"
    finally:
        process.stop()
        holder.close()
