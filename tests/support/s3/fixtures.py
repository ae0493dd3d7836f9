"""
S3 servers that live as long as the session, buckets and gates that live as long as a test.

For `pytest_plugins`; nothing starts before a test asks for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.loopback import HOST
from tests.support.s3.gate import Gate
from tests.support.s3.servers import S3Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.s3.servers import S3Server


@pytest.fixture(scope="session", autouse=True)
def s3_clients_know_nothing_of_this_machine() -> Iterator[None]:
    """Hide the settings and credentials of the developer, and keep clients from asking the network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:  # noqa: TID251 - tests read what they run in
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture(scope="session")
def s3_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Servers]:
    """Servers by name: `s3_servers["moto"]`."""
    servers = S3Servers(tmp_path_factory.mktemp("s3"))
    yield servers
    servers.stop()


@pytest.fixture
def bucket(s3_servers: S3Servers) -> Callable[[str], S3Server]:
    """Make fresh buckets, as in `bucket("moto")`."""
    return s3_servers.with_bucket


@pytest.fixture
async def gate_to() -> AsyncIterator[Callable[[S3Server], Awaitable[Gate]]]:
    """Make gates that stand before servers."""
    gates: list[Gate] = []

    async def make(server: S3Server) -> Gate:
        gates.append(Gate(HOST, server.port))
        await gates[-1].start()
        return gates[-1]

    yield make
    for gate in gates:
        await gate.stop()
