"""
fake-gcs-server, which lives as long as the session, and a strict server for one test.

For `pytest_plugins`; nothing starts before a test asks for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.gcs.accounts import service_account, use_credentials
from tests.support.gcs.fake_gcs_server import FakeGcsServer, fake_gcs_server_in
from tests.support.gcs.strict_server import StrictGcs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

_FOREIGN = ("GOOGLE_", "GCE_", "STORAGE_EMULATOR_HOST", "CLOUDSDK_", "GCLOUD_")


def pytest_configure() -> None:
    """Keep google-auth from asking the network; it reads these once, when it is imported."""
    os.environ["GCE_METADATA_HOST"] = os.environ["GCE_METADATA_IP"] = "127.0.0.1:9"  # noqa: TID251 - in place of 169.254.169.254


@pytest.fixture(scope="session", autouse=True)
def gcs_clients_know_nothing_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the settings and credentials of the developer."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_FOREIGN) and not name.startswith("GCE_METADATA")]:  # noqa: TID251 - tests read what they run in
            patch.delenv(name)
        patch.setenv("CLOUDSDK_CONFIG", str(tmp_path_factory.getbasetemp() / "no-gcloud"))
        yield


@pytest.fixture(scope="session")
def started_fake_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcsServer]:
    server = fake_gcs_server_in(tmp_path_factory.mktemp("fake-gcs-server"))
    server.start()
    yield server
    server.stop()
    server.process.holder.close()


@pytest.fixture
def fake_gcs_server(started_fake_gcs_server: FakeGcsServer) -> FakeGcsServer:
    """Give a new bucket on fake-gcs-server, which starts again if a test left it stopped or frozen."""
    if started_fake_gcs_server.process.running:
        started_fake_gcs_server.thaw()
    else:
        started_fake_gcs_server.start()
    return started_fake_gcs_server.with_bucket()


@pytest.fixture
async def strict_gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[StrictGcs]:
    """Give a strict server, to which clients find their way with the key of its account."""
    server = StrictGcs()
    await server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    use_credentials(service_account(server.endpoint), tmp_path, monkeypatch)
    yield server
    await server.stop()
