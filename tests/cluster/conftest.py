"""What nodes of several modules share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import cluster_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster_nodes import Surroundings


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    """Hosts of their own, PostgreSQL and an S3 server."""
    with cluster_nodes.surroundings(tmp_path_factory.mktemp("surroundings")) as made:
        yield made
