"""Members of this version on the tables of a later one: leases, changes and jobs go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.core.records import Digest
from imgkeep.database.schema_upgrade import COMPATIBLE_FROM
from tests.support.change_nodes import ChangeNode, make_tables
from tests.support.counted_origin import counted_origin
from tests.support.database import upgrade_to_later
from tests.support.fills import IMAGE, URL
from tests.support.job_members import job_members
from tests.support.lease_nodes import lease_nodes

if TYPE_CHECKING:
    from pathlib import Path


def upgrade(url: str) -> None:
    upgrade_to_later(url.replace("postgresql:", "postgresql+psycopg:"), COMPATIBLE_FROM)


@pytest.fixture
async def newer_url(postgresql_url: str) -> str:
    """Give the URL of a database whose tables a later version has changed."""
    url = await make_tables(postgresql_url)
    upgrade(url)
    return url


async def test_nodes_of_this_version_fetch_once_on_a_newer_schema(newer_url: str) -> None:
    async with lease_nodes(newer_url, "a", "b") as (a, b):
        a.world.origin.gives(URL, IMAGE)
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert await b.world.get(URL) == ("hit", IMAGE)
        assert (a.leases.unleased, b.leases.unleased) == (0, 0)


async def test_members_of_this_version_learn_changes_on_a_newer_schema(newer_url: str) -> None:
    a, b = ChangeNode(newer_url, "a"), ChangeNode(newer_url, "b")
    async with a.running(), b.running():
        await a.writer.notify(blocked=[Digest("x" * 64)])
        assert b.learner.blocked == [Digest("x" * 64)]


async def test_members_of_this_version_save_links_on_a_newer_schema(newer_url: str, tmp_path: Path) -> None:
    async with counted_origin(["127.0.0.2"]) as origin, job_members(2, newer_url, tmp_path) as (a, b):
        origin.bodies["/a.png"] = b"image"
        job = await a.runner.submit([origin.url("/a.png", 0)])
        assert (await b.wait_for_end(job)).saved == 1


async def test_running_member_outlives_the_upgrade(postgresql_url: str) -> None:
    url = await make_tables(postgresql_url)
    async with lease_nodes(url, "a") as (a,):
        upgrade(url)
        await a.membership.beat()
        assert a.membership.is_joined
        a.world.origin.gives(URL, IMAGE)
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert a.leases.unleased == 0
