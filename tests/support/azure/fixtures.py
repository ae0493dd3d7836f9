"""Azurite, which lives as long as the session. For `pytest_plugins`; nothing starts before a test asks for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.azure.azurite import Azurite, azurite_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def azure_clients_know_nothing_of_this_machine() -> Iterator[None]:
    """Hide the settings and credentials of the developer, and keep clients from asking the network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AZURE_")]:  # noqa: TID251 - tests read what they run in
            patch.delenv(name)
        patch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")  # in place of 169.254.169.254
        yield


@pytest.fixture(scope="session")
def started_azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    server = azurite_in(tmp_path_factory.mktemp("azurite"))
    server.start()
    yield server
    server.stop()
    server.process.holder.close()


@pytest.fixture
def azurite(started_azurite: Azurite) -> Azurite:
    """Give a new container on Azurite, which starts again if a test left it stopped or frozen."""
    if started_azurite.process.running:
        started_azurite.thaw()
    else:
        started_azurite.start()
    return started_azurite.with_container()
