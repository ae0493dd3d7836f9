"""A node whose PostgreSQL fails: it goes on with images, and its API says when to come again."""

from __future__ import annotations

from contextlib import suppress
from shutil import disk_usage
from typing import TYPE_CHECKING

import psycopg

from tests.support.images import make_image
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.postgresql import PostgresqlServer
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]


async def serves(node: Imgkeep, url: str, body: bytes) -> bool:
    response = await node.img(url)
    return response.status == 200 and await response.read() == body


async def create_job(node: Imgkeep, *links: str) -> int:
    """Ask for a job; return the status, after a look at what goes with it."""
    async with node.client.post("/api/save-images", json={"urls": links}) as response:
        if response.status == 503:
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["code"] == "storage_unavailable"
        return response.status


async def test_full_disk_of_the_database_stops_no_image(
    postgresql: PostgresqlServer, small_disk: Path, start: Start, origin: FakeOrigin
) -> None:
    postgresql.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    postgresql.execute("CREATE DATABASE full_disk TEMPLATE template0 STRATEGY file_copy TABLESPACE small")
    node = await start(database={"url": postgresql.url("full_disk")})
    known, new = (origin.gives(f"/{seed}.png", make_image(seed=seed)) for seed in (1, 2))
    assert await serves(node, known, make_image(seed=1))
    with suppress(psycopg.errors.DiskFull):
        postgresql.execute(
            "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 99999) n", "full_disk"
        )
    (small_disk / "filler").write_bytes(bytes(disk_usage(small_disk).free))
    assert await serves(node, known, make_image(seed=1))
    assert await serves(node, new, make_image(seed=2))
    links = [f"{new}?{'x' * 2000}{number}" for number in range(100)]
    assert await create_job(node, *links) == 503
    (small_disk / "filler").unlink()
    assert await create_job(node, new) == 202
    await node.client.close()
    postgresql.drop_database(postgresql.url("full_disk"))
    postgresql.execute("DROP TABLESPACE small")


async def test_server_that_is_away_stops_no_image(
    postgresql: PostgresqlServer, postgresql_url: str, start: Start, origin: FakeOrigin
) -> None:
    node = await start(database={"url": postgresql_url})
    known, new = (origin.gives(f"/{seed}.png", make_image(seed=seed)) for seed in (1, 2))
    assert await serves(node, known, make_image(seed=1))
    assert await create_job(node, known) == 202
    postgresql.stop()
    try:
        assert await create_job(node, known) == 503
        assert await serves(node, known, make_image(seed=1))
        assert await serves(node, new, make_image(seed=2))
    finally:
        postgresql.start()

    async def works() -> bool:
        return await create_job(node, known) == 202

    await until(works)
    await node.client.close()
