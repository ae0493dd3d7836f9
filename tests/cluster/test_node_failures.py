"""Three nodes of which some die, lose their disks or are cut off; or whose database or bucket is away."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.cluster_clients import client_of, load
from tests.support.cluster_nodes import three_nodes
from tests.support.counted_origin import counted_origin
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.cluster_clients import Client
    from tests.support.cluster_nodes import Node, Nodes, Surroundings
    from tests.support.counted_origin import CountedOrigin

STALE_MAX_S = 1
JOB_HOST_MAX = 4
"""Maximum number of links of jobs that are fetched from one host at once."""
JOB_ITEMS_AT_DEATH_MAX = 2 * 16
"""Maximum number of links that two nodes were fetching when they died."""
INTERVAL_S = 0.02
"""Interval between two requests of the load."""
OUTAGE_REQUESTS = int((STALE_MAX_S + 1.5) / INTERVAL_S)
"""Number of new images that are asked for while the database is away: for longer than `cluster.stale_max_s`."""


@pytest.fixture(scope="module")
def running(surroundings: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    settings = {"cluster__stale_max_s": str(STALE_MAX_S), "store__timeout_s": "2"}
    with three_nodes(surroundings, tmp_path_factory.mktemp("nodes"), **settings) as nodes:
        yield nodes


@pytest.fixture
def nodes(running: Nodes) -> Iterator[Nodes]:
    """Give the nodes, and bring back afterwards what a test has taken away."""
    yield running
    running.restore()


@pytest.fixture
async def client(nodes: Nodes) -> AsyncIterator[Client]:
    async with client_of(nodes) as one:
        yield one


@pytest.fixture
async def origin(surroundings: Surroundings) -> AsyncIterator[CountedOrigin]:
    async with counted_origin(surroundings.network.gateways) as one:
        yield one


async def test_jobs_outlive_killed_nodes(client: Client, origin: CountedOrigin) -> None:
    """One node comes back, with its disk lost; one stays away."""
    origin.answer_s = 0.1
    nodes = client.nodes.members
    urls = [origin.gives(f"/job/{number}.png", host=number % 6) for number in range(200)]
    jobs = [await client.post_job(part, webhook=origin.url(f"/{len(part)}")) for part in (urls[:90], urls[90:])]
    await until(lambda: origin.fetches() > 40)
    nodes[1].kill()
    nodes[1].lose_disk()
    nodes[1].launch()
    await until(lambda: origin.fetches() > 90)
    nodes[2].kill()
    ended = [await client.until_done(job, nodes[0]) for job in jobs]
    assert [job["saved"] for job in ended] == [90, 110]
    assert origin.fetched_twice() <= JOB_ITEMS_AT_DEATH_MAX
    assert max(origin.running_max.values()) <= JOB_HOST_MAX
    await until(lambda: len(origin.messages) == len(jobs))


async def test_removal_reaches_nodes_that_were_cut_off(client: Client, origin: CountedOrigin) -> None:
    """One reaches no database, and clients go on asking it; one reaches nothing, and comes back with its memory."""
    first, second, third = client.nodes.members
    url, other = origin.gives("/removed.png"), origin.gives("/stays.png")
    for node in (first, second, third) * 2:
        await client.img(url, node)
        await client.img(other, node)
    permanent = (await client.img(url)).headers["Content-Location"]
    second.host.lose(client.nodes.around.database_host.address)
    third.host.unplug()
    assert (await client.remove(url, first)).status == 200
    assert (await client.img(url, first)).status == 410
    third.host.plug()
    await until(lambda: third.answers("/healthz"))
    assert (await client.img(url, third)).status == 410
    await until(lambda: _is_gone(client, url, second))
    assert (await client.ask(permanent, second)).status == 410
    assert (await client.img(other, second)).status == 200
    second.host.restore()
    await until(lambda: _all_ready(client))
    assert [(await client.img(url, node)).status for node in (first, second, third)] == [410] * 3
    name = permanent.rpartition("/")[2]
    assert not [path for path in await client.nodes.bucket.objects("v1/objects/") if path.endswith(name)]


async def test_node_that_is_cut_off_alone_shows_no_removed_image(client: Client, origin: CountedOrigin) -> None:
    """A client on its own side asks it; its memory and its disk have the image."""
    first, _, third = client.nodes.members
    url = origin.gives("/cut-off.png")
    for node in client.nodes.members * 2:
        assert (await client.img(url, node)).status == 200
    permanent = (await client.img(url)).headers["Content-Location"]
    third.host.unplug()
    assert (await client.remove(url, first)).status == 200
    path = f"/img?src={quote(url, safe='')}"
    await until(lambda: _answers(third, path, 503))
    assert await asyncio.to_thread(third.ask_on_its_host, permanent) == (503, True)
    third.host.plug()
    await until(lambda: _is_gone(client, url, third))
    await until(lambda: _all_ready(client))
    assert (await client.ask(permanent, third)).status == 410


async def test_load_notices_nothing_of_a_stopped_database(client: Client, origin: CountedOrigin) -> None:
    before = await _count_images(client, client.nodes.members[0])
    stored = [origin.gives(f"/stored/{number}.png") for number in range(20)]
    for url in stored:
        assert (await client.img(url)).status == 200
    async with load(client, origin, stored, interval_s=INTERVAL_S) as answers:
        await until(lambda: answers["new"] > 10)
        client.nodes.around.postgresql.stop()
        sooner = answers["new"]
        await until(lambda: answers["new"] > sooner + OUTAGE_REQUESTS)
        refused = await client.ask("/api/images")
        client.nodes.around.postgresql.start()
    assert set(answers) == {"new", "stored"}, answers
    assert (refused.status, "Retry-After" in refused.headers) == (503, True)
    wanted = before + len(stored) + answers["new"]
    for node in client.nodes.members:
        await until(partial(_has_images, client, node, wanted))
    assert origin.fetched_twice() <= answers["new"] // 50


async def test_images_come_while_database_and_bucket_are_away(client: Client, origin: CountedOrigin) -> None:
    nodes, around = client.nodes.members, client.nodes.around
    stored = origin.gives("/had.png")
    for node in nodes * 2:
        assert (await client.img(stored, node)).status == 200
    around.postgresql.stop()
    around.s3.process.stop()
    fresh = [origin.gives(f"/fresh/{number}.png") for number in range(3)]
    answers = [await client.img(url, node) for node, url in zip(nodes, fresh, strict=True)]
    assert [answer.status for answer in answers] == [200] * 3
    for node in nodes:
        await until(partial(_is_suspended, client, node))
    assert [(await client.img(stored, node)).status for node in nodes] == [200] * 3
    around.restore()
    await until(lambda: _all_ready(client))
    assert [(await client.img(url)).status for url in fresh for _ in nodes] == [200] * 9
    assert [origin.asked[f"/fresh/{number}.png"] for number in range(3)] == [1] * 3


async def test_image_that_waits_on_one_node_is_shown_by_all(client: Client, origin: CountedOrigin) -> None:
    nodes, around = client.nodes.members, client.nodes.around
    around.s3.process.stop()
    url = origin.gives("/waits.png")
    first = await client.img(url, nodes[0])
    key = (await client.ask("/api/images?limit=1", nodes[0])).json["images"][0]["key"]
    for node in nodes:
        shown = await client.img(url, node)
        assert (shown.status, shown.body) == (200, first.body)
        facts = (await client.ask(f"/api/images/{key}", node)).json
        assert (facts["storage"], facts["node"]) == ("local", nodes[0].name)
    assert origin.asked["/waits.png"] == 1
    around.restore()
    await until(lambda: _all_ready(client))

    async def is_in_the_bucket() -> bool:
        found = [(await client.ask(f"/api/images/{key}", node)).json for node in nodes]
        return all(facts["storage"] == "s3" and "node" not in facts for facts in found)

    await until(is_in_the_bucket)


async def test_clock_that_is_five_minutes_off_changes_nothing(client: Client, origin: CountedOrigin) -> None:
    third = client.nodes.members[2]
    third.kill()
    third.clock_shift_s = 300
    third.start()
    origin.bytes_per_s = 200_000
    answers = await asyncio.gather(
        *(client.img(origin.gives(f"/time/{number}.png", 100_000)) for number in range(3) for _ in range(6))
    )
    third.clock_shift_s = 0
    assert {answer.status for answer in answers} == {200}
    assert [origin.asked[f"/time/{number}.png"] for number in range(3)] == [1] * 3


# --- what the tests share


async def _is_gone(client: Client, url: str, node: Node) -> bool:
    return bool((await client.img(url, node)).status == 410)


async def _is_suspended(client: Client, node: Node) -> bool:
    return await client.metric("imgkeep_cluster_caches_suspended", node) == 1


async def _answers(node: Node, path: str, status: int) -> bool:
    return (await asyncio.to_thread(node.ask_on_its_host, path))[0] == status


async def _is_ready(client: Client, node: Node) -> bool:
    return bool((await client.ask("/readyz", node)).json["status"] == "ready")


async def _all_ready(client: Client) -> bool:
    return all([await _is_ready(client, node) for node in client.nodes.members])


async def _has_images(client: Client, node: Node, number: int) -> bool:
    return await _count_images(client, node) == number


async def _count_images(client: Client, node: Node) -> int:
    return len((await client.ask("/api/images?limit=1000", node)).json["images"])
