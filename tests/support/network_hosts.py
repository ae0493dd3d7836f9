"""
Hosts with a network of their own on this machine: network namespaces that one bridge connects.

The tests' process is on that network, too, at the gateway's addresses. Nothing has to be removed afterwards: a host
is a process that holds its namespace and ends with the tests, however these end, and the kernel removes its interfaces
with it. The bridge is in a namespace of its own; so the one trace in the network of this machine is an interface whose
peer is in there.

Needs root; iproute2, and `unshare`, `nsenter` of util-linux. Nothing is routed: a host reaches these hosts alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.program import cannot
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETWORKS: Final = range(1, 250)
"""Third numbers of the networks that test processes take one each, 10.213.N.0/24."""
GATEWAYS: Final = range(1, 10)
"""Last numbers of the addresses of the tests' process."""
LEASHED: Final = ("setpriv", "--pdeathsig", "KILL")
"""The command that runs another one, which ends with the tests, however these end."""
_NOWHERE: Final = "02:00:00:00:00:01"
"""A hardware address that no interface has."""


@dataclass
class Namespace:
    """A network namespace, which ends with the process that holds it."""

    holder: subprocess.Popen[bytes]

    @property
    def enter(self) -> Sequence[str]:
        """The command that runs another one in this network."""
        return ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--")

    def run(self, *words: str) -> None:
        _run(*self.enter, *words)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(words)}: {done.stderr}"


def _namespace() -> Namespace:
    # The parent, for the kernel, is the thread that starts a process: the namespace would end with that thread.
    assert threading.current_thread() is threading.main_thread()
    made = Namespace(subprocess.Popen([*LEASHED, "unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL))
    own = Path("/proc/self/ns/net").readlink()
    block_until(lambda: Path(f"/proc/{made.holder.pid}/ns/net").readlink() != own)
    made.run("ip", "link", "set", "lo", "up")
    return made


@dataclass
class Host:
    """
    A machine on the network.

    Attributes:
        address: Of the interface `eth0`.
        port: The interface at the other end of its cable, in the namespace of the bridge.
    """

    name: str
    address: str
    port: str
    namespace: Namespace
    bridge: Namespace
    _lost: set[str] = field(default_factory=set)

    @property
    def enter(self) -> Sequence[str]:
        return self.namespace.enter

    def unplug(self) -> None:
        """Lose every packet from and to this host; connections stay open and say nothing."""
        self.bridge.run("ip", "link", "set", self.port, "down")

    def plug(self) -> None:
        self.bridge.run("ip", "link", "set", self.port, "up")

    def lose(self, address: str) -> None:
        """Lose every packet from this host to one address."""
        self.namespace.run("ip", "neighbor", "replace", address, "lladdr", _NOWHERE, "dev", "eth0")
        self._lost.add(address)

    def find(self, address: str) -> None:
        """End what `lose` began."""
        self.namespace.run("ip", "neighbor", "del", address, "dev", "eth0")
        self._lost.remove(address)

    def restore(self) -> None:
        """End whatever `unplug` and `lose` began."""
        self.plug()
        for address in list(self._lost):
            self.find(address)


@dataclass
class Network:
    """
    Hosts on one bridge, and the tests' process at its gateway.

    Attributes:
        number: The third number of all addresses.
    """

    number: int
    bridge: Namespace
    hosts: list[Host] = field(default_factory=list)

    @property
    def gateways(self) -> list[str]:
        """The addresses of the tests' process: several, so that it can be several hosts to others."""
        return [self._address(last) for last in GATEWAYS]

    @property
    def unused(self) -> str:
        """An address of this network that no host has."""
        return self._address(250)

    @property
    def range(self) -> str:
        """The addresses of all hosts."""
        return self._address(0) + "/24"

    def add(self, name: str) -> Host:
        """Connect one more host."""
        port = f"port{len(self.hosts)}"
        host = Host(name, self._address(GATEWAYS.stop + len(self.hosts)), port, _namespace(), self.bridge)
        self.hosts.append(host)
        there = str(host.namespace.holder.pid)
        self.bridge.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", there)
        self.bridge.run("ip", "link", "set", port, "master", "bridge", "up")
        host.namespace.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.namespace.run("ip", "link", "set", "eth0", "up")
        return host

    def close(self) -> None:
        for host in self.hosts:
            host.namespace.close()
        self.bridge.close()

    def _address(self, last: int) -> str:
        return f"10.213.{self.number}.{last}"


@contextmanager
def network() -> Iterator[Network]:
    """Make a network until the end of the block, or skip the test where that is not allowed."""
    _need_rights()
    made = Network(0, _namespace())
    try:
        made.number = _connect(made.bridge)
        yield made
    finally:
        made.close()


def _need_rights() -> None:
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        cannot(f"{', '.join(missing)} not installed (Debian: apt-get install iproute2 util-linux)")
    if os.geteuid() != 0:
        cannot("only root may make network namespaces that this process can reach")
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "bridge", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        cannot(f"this machine makes no network namespaces with a bridge: {tried.stderr.strip()}")


def _connect(bridge: Namespace) -> int:
    """Connect this process with a new bridge by the first network that no other process has; return its number."""
    bridge.run("ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
    bridge.run("ip", "link", "set", "bridge", "up")
    there = str(bridge.holder.pid)
    number = next((number for number in NETWORKS if _take(number, there)), None)
    if number is None:
        cannot("all networks of the tests are taken")
    bridge.run("ip", "link", "set", "uplink", "master", "bridge", "up")
    for last in GATEWAYS:
        _run("ip", "address", "add", f"10.213.{number}.{last}/24", "dev", f"imgkeep{number}")
    _run("ip", "link", "set", f"imgkeep{number}", "up")
    return number


def _take(number: int, there: str) -> bool:
    """Make the pair of interfaces of a network, unless another process has made it."""
    tried = subprocess.run(
        ["ip", "link", "add", f"imgkeep{number}", "type", "veth", "peer", "name", "uplink", "netns", there],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not tried.returncode or "File exists" in tried.stderr, tried.stderr
    return not tried.returncode
