"""A small internet on loopback: names that resolve as told, a record of every address dialled, and certificates."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import trustme
from aiohttp.abc import AbstractResolver

from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp.abc import ResolveResult

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

Addresses = Sequence[str]
PUBLIC = "93.184.215.14"
TLS_PORTS = frozenset({443, 8443})
NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
SERVER_FAILURE = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@dataclass
class Names(AbstractResolver):
    """
    Answers names from a table.

    Attributes:
        answers: Addresses by name, or what gives them, or an exception to raise.
        default: Addresses of all other names; `None`: they do not exist.
        asked: Every question so far.
    """

    answers: dict[str, Addresses | Callable[[], Awaitable[Addresses]] | OSError] = field(default_factory=dict)
    default: Addresses | None = None
    asked: list[str] = field(default_factory=list)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answer = self.answers.get(host, NO_SUCH_NAME if self.default is None else self.default)
        if isinstance(answer, OSError):
            raise answer
        addresses = await answer() if callable(answer) else answer
        return [_result(host, address, port, family) for address in addresses]

    async def close(self) -> None:
        """Nothing is open."""


def _result(host: str, address: str, port: int, _family: socket.AddressFamily) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}


class _Rerouted(socket.socket):
    """A socket of this machine only: whatever address it is told to connect to, it connects to `home` on loopback."""

    def __init__(self, told: int, home: int) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self._told = told
        self._home = home

    @property
    def family(self) -> int:  # type: ignore[override]  # asyncio checks the address against it
        return self._told

    def connect(self, _address: Any) -> None:
        super().connect(("127.0.0.1", self._home))


@dataclass
class Dials:
    """A socket factory that remembers every address and connects to the origins on loopback instead."""

    plain: FakeOrigin
    tls: FakeOrigin | None = None
    made: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, info: Any) -> socket.socket:
        address, port = info[4][:2]
        self.made.append((address, port))
        origin = self.tls if port in TLS_PORTS else self.plain
        if origin is None:
            raise OSError(errno.ECONNREFUSED, "no server listens there")
        return _Rerouted(info[0], origin.port)


@cache
def authority() -> trustme.CA:
    """Return the certificate authority of this internet."""
    return trustme.CA()


def server_context(*names: str, ca: trustme.CA | None = None, **how: Any) -> ssl.SSLContext:
    """Return what a TLS origin with these names needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (ca or authority()).issue_cert(*names, **how).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """Return what a client needs that trusts our authority."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@dataclass
class Timer:
    """Monotonic seconds that pass when told."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Seen:
    """What a client got: a whole body, or `broken`."""

    status: int
    body: bytes
    headers: Any
    broken: bool = False

    @property
    def code(self) -> object:
        """The code of a problem."""
        return msgspec.json.decode(self.body)["code"] if self.body[:1] == b"{" else None


async def look(imgkeep: Imgkeep, url: str, **how: Any) -> Seen:
    """Ask for an image and read as much as there is."""
    response = await imgkeep.img(url, **how)
    received = bytearray()
    try:
        async for chunk in response.content.iter_any():
            received += chunk
    except (aiohttp.ClientPayloadError, ConnectionError):
        return Seen(response.status, bytes(received), response.headers, broken=True)
    return Seen(response.status, bytes(received), response.headers)


async def counted(imgkeep: Imgkeep, sample: str) -> float:
    """Return the sum of the samples of `/metrics` with these labels, as in `imgkeep_fills_total{outcome="stored"}`."""
    page = await (await imgkeep.client.get("/metrics")).text()
    name, wanted = _read_sample(sample)
    found = (line.rpartition(" ") for line in page.splitlines() if line[:1] not in {"", "#"})
    read = [(*_read_sample(sample), float(value)) for sample, _, value in found]
    return sum(value for each, labels, value in read if each == name and wanted <= labels)


def _read_sample(sample: str) -> tuple[str, set[str]]:
    name, _, labels = sample.rstrip("}").partition("{")
    return name, set(labels.split(",")) - {""}


async def until_counted(imgkeep: Imgkeep, sample: str, value: float) -> None:
    """Wait until a sample of `/metrics` has a value."""

    async def has_value() -> bool:
        return await counted(imgkeep, sample) == value

    await until(has_value)


async def nothing_kept(imgkeep: Imgkeep) -> None:
    """Wait until the last fill has cleaned up; then there must be no file of any kind."""
    await until(lambda: not imgkeep.files("partial"))
    assert imgkeep.files("objects") == []
    assert imgkeep.files("records") == []
