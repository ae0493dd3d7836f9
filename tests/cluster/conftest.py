"""What nodes of several modules share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.nodes import secret_mark
from tests.support import cluster_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster_nodes import Surroundings


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    """Hosts of their own, PostgreSQL and an S3 server."""
    with cluster_nodes.surroundings(tmp_path_factory.mktemp("surroundings")) as made:
        yield made


@pytest.fixture(autouse=True)
def hash_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hash of the cluster's secret cost next to nothing in this process, not in those of nodes."""
    monkeypatch.setitem(secret_mark._SCRYPT, "n", 2)
