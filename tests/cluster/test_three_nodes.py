"""Three nodes behind nginx, on PostgreSQL and a bucket: what clients see is one server."""

from __future__ import annotations

import asyncio
from secrets import token_hex
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from imgkeep.cluster.nodes.authentication import REQUEST_FIELD, RequestSigner
from tests.support.cluster_clients import client_of, read_at_once
from tests.support.cluster_nodes import PEER_PORT, SECRET, three_nodes
from tests.support.counted_origin import counted_origin
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.cluster_clients import Client
    from tests.support.cluster_nodes import Node, Nodes, Surroundings
    from tests.support.counted_origin import CountedOrigin

LARGE = 5 * 2**20
DERIVATIONS = r'imgkeep_derive_jobs_total\{.*outcome="done"'
JOB_HOST_MAX = 4
"""Maximum number of links of jobs that are fetched from one host at once."""


@pytest.fixture(scope="module")
def nodes(surroundings: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with three_nodes(surroundings, tmp_path_factory.mktemp("nodes")) as running:
        yield running


@pytest.fixture
def spare(nodes: Nodes) -> Iterator[Callable[..., Node]]:
    """Start a fourth node, with settings of its own."""
    added: list[Node] = []

    def start(**settings: str) -> Node:
        added.append(nodes.add(nodes.around.hosts[-1], **settings))
        added[-1].start()
        return added[-1]

    yield start
    for node in added:
        node.kill()
        node.lose_disk()
        nodes.members.remove(node)


@pytest.fixture
async def client(nodes: Nodes) -> AsyncIterator[Client]:
    async with client_of(nodes) as one:
        yield one


@pytest.fixture
async def origin(surroundings: Surroundings) -> AsyncIterator[CountedOrigin]:
    async with counted_origin(surroundings.network.gateways) as one:
        yield one


def test_nodes_that_start_at_once_make_one_schema(nodes: Nodes) -> None:
    logs = [node.log.read_text("utf-8") for node in nodes.members]
    assert not [line for log in logs for line in log.splitlines() if '"level":"info"' not in line]


async def test_one_cold_link_is_one_fetch(nodes: Nodes, origin: CountedOrigin) -> None:
    origin.bytes_per_s = LARGE
    url = origin.gives("/cold.png", LARGE)
    answers = await read_at_once(nodes.proxy, url, origin.bodies["/cold.png"], number=300)
    assert origin.asked["/cold.png"] == 1
    assert all(answer.is_whole for answer in answers)
    assert len({answer.etag for answer in answers}) == 1


async def test_node_without_the_record_adopts_that_of_the_store(client: Client, origin: CountedOrigin) -> None:
    url = origin.gives("/later.png")
    answers = [await client.img(url, node) for node in client.nodes.members]
    assert [answer.status for answer in answers] == [200] * 3
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    assert origin.asked["/later.png"] == 1


async def test_picture_is_made_once_for_all_nodes_and_removed_from_all(client: Client, origin: CountedOrigin) -> None:
    nodes = client.nodes.members
    url = origin.gives("/picture.png")
    target = f"/img?src={quote(url, safe='')}&w=64&format=webp"
    answers = await asyncio.gather(*(client.ask(target, node) for node in nodes * 3))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    assert sum([await client.metric(DERIVATIONS, node) for node in nodes]) == 1
    assert [len(pictures_of(node)) for node in nodes] == [1] * 3
    assert (await client.remove(url, nodes[0])).status == 200
    assert [(await client.ask(target, node)).status for node in nodes] == [410] * 3
    assert [pictures_of(node) for node in nodes] == [[]] * 3


def pictures_of(node: Node) -> list[Path]:
    return list((node.folder / "derived").rglob("*.webp"))


async def test_dead_link_is_one_fetch(client: Client, origin: CountedOrigin) -> None:
    answers = [await client.img(origin.url("/dead.png")) for _ in range(9)]
    assert {answer.status for answer in answers} == {404}
    assert origin.asked["/dead.png"] == 1


async def test_dead_link_that_all_nodes_ask_for_at_once_is_one_fetch(client: Client, origin: CountedOrigin) -> None:
    origin.answer_s = 0.3
    answers = await asyncio.gather(*(client.img(origin.url("/gone.png")) for _ in range(9)))
    assert {answer.status for answer in answers} == {404}
    assert origin.asked["/gone.png"] == 1


async def test_every_node_knows_a_job(client: Client, origin: CountedOrigin) -> None:
    origin.answer_s = 0.02
    urls = [origin.gives(f"/job/{number}.png", host=number % 2) for number in range(40)]
    job = await client.post_job(urls, webhook=origin.url("/hook"))
    polls = [await client.ask(f"/api/jobs/{job}") for _ in range(30)]
    events = await asyncio.gather(*(client.ask(f"/api/jobs/{job}/events") for _ in range(6)))
    assert {answer.status for answer in (*polls, *events)} == {200}
    assert all(b"event: done" in answer.body for answer in events)
    found = [await client.job(job, node) for node in client.nodes.members]
    assert all(each == found[0] for each in found)
    assert (found[0]["state"], found[0]["saved"]) == ("done", 40)
    assert origin.fetches("/job/") == 40
    assert max(origin.running_max.values()) <= JOB_HOST_MAX
    await until(lambda: origin.messages)
    lists = [(await client.ask("/api/images?limit=1000", node)).json for node in client.nodes.members]
    assert lists[0]["images"]
    assert all(each == lists[0] for each in lists)
    jobs = [(await client.ask("/api/jobs", node)).json for node in client.nodes.members]
    assert all(each == jobs[0] for each in jobs)
    assert len(origin.messages) == 1


async def test_all_nodes_work_on_a_job(client: Client, origin: CountedOrigin) -> None:
    counters = "imgkeep_job_links_total"
    before = [await client.metric(counters, node) for node in client.nodes.members]
    origin.answer_s = 0.05
    urls = [origin.gives(f"/shared/{number}.png", host=number % 9) for number in range(120)]
    await client.until_done(await client.post_job(urls))
    after = [await client.metric(counters, node) for node in client.nodes.members]
    shares = [later - sooner for sooner, later in zip(before, after, strict=True)]
    assert sum(shares) == len(urls)
    assert all(shares), shares


async def test_any_node_cancels_a_job(client: Client, origin: CountedOrigin) -> None:
    first, second, third = client.nodes.members
    origin.answer_s = 5
    job = await client.post_job([origin.gives(f"/slow/{number}.png") for number in range(50)], first)
    await until(lambda: origin.fetches("/slow/"))
    answer = await client.ask(f"/api/jobs/{job}/cancel", second, "POST")
    assert answer.status == 200
    assert (await client.job(job, third))["state"] == "cancelled"
    assert origin.fetches("/slow/") <= JOB_HOST_MAX


async def test_removal_is_everywhere_when_it_is_acknowledged(client: Client, origin: CountedOrigin) -> None:
    nodes = client.nodes.members
    for number in range(6):
        url = origin.gives(f"/removed/{number}.png")
        for node in nodes * 2:  # so that the response is in the response cache of each
            assert (await client.img(url, node)).status == 200
        permanent = (await client.img(url)).headers["Content-Location"]
        assert (await client.remove(url, nodes[number % 3])).status == 200
        answers = [await client.img(url, node) for node in nodes] + [await client.ask(permanent, at) for at in nodes]
        assert [answer.status for answer in answers] == [410] * 6


async def test_undo_of_a_removal_is_everywhere_when_it_is_acknowledged(client: Client, origin: CountedOrigin) -> None:
    first, second, third = client.nodes.members
    url = origin.gives("/restored.png")
    await client.img(url, first)
    await client.remove(url, second)
    assert (await client.img(url, third)).status == 410
    answer = await client.ask("/api/restore", third, "POST", json={"url": url})
    assert answer.status == 200
    assert [(await client.img(url, node)).status for node in (first, second, third)] == [200] * 3


async def test_refetched_image_is_everywhere_when_it_is_acknowledged(client: Client, origin: CountedOrigin) -> None:
    nodes = client.nodes.members
    url = origin.gives("/changed.png")
    for node in nodes * 2:
        await client.img(url, node)
    origin.gives("/changed.png", 3000)
    answer = await client.ask("/api/refetch", nodes[1], "POST", json={"url": url})
    assert answer.json["replaced"] is True
    answers = [await client.img(url, node) for node in nodes]
    assert [len(answer.body) for answer in answers] == [3000] * 3
    assert len({answer.headers["ETag"] for answer in answers}) == 1


async def test_node_that_no_other_reaches_costs_a_fetch_and_no_answer(
    client: Client, origin: CountedOrigin, spare: Callable[..., Node]
) -> None:
    fourth = spare(cluster__advertise_url=f"http://{client.nodes.around.network.unused}:8090")
    origin.bytes_per_s = 200_000
    url = origin.gives("/unreachable.png", 200_000)
    holder = asyncio.create_task(client.img(url, fourth))
    await until(lambda: origin.asked["/unreachable.png"])
    others = [asyncio.create_task(client.img(url, node)) for node in client.nodes.members[:3]]
    answers = await asyncio.gather(holder, *others)
    assert [(answer.status, len(answer.body)) for answer in answers] == [(200, 200_000)] * 4
    assert origin.asked["/unreachable.png"] <= 1 + len(others)


async def test_client_without_the_secret_gets_nothing_from_a_peer(client: Client, origin: CountedOrigin) -> None:
    node = client.nodes.members[0]
    peer, url = f"{node.host.address}:{PEER_PORT}", f"http://{node.host.address}:{PEER_PORT}"
    key = (await client.ask(f"/api/inspect?src={quote(origin.gives('/secret.png'), safe='')}")).json["key"]
    (member, now), *_ = client.nodes.around.postgresql.execute(
        "SELECT id, extract(epoch FROM now())::float8 FROM cluster_members WHERE id LIKE 'node-1/%'",
        client.nodes.database_url.rpartition("/")[2],
    )

    def sign(secret: str, path: str) -> dict[str, str]:
        signer = RequestSigner(secret, str(member), now=lambda: float(str(now)), draw_nonce=lambda: token_hex(16))
        return {REQUEST_FIELD: signer.sign(url, "GET", path).field}

    assert (await client.ask(f"/fills/{key}", peer, fields=sign(SECRET, f"/fills/{key}"))).status == 204
    before = await client.metric("imgkeep_peer_requests_refused", node)
    paths = [f"/fills/{key}", f"/fills/{key}/end", f"/objects/{'0' * 64}.png", "/failures", "/api/images", "/"]
    for path in paths:
        for fields in ({}, sign(SECRET + "x", path), sign(SECRET, path + "?x")):
            answer = await client.ask(path, peer, fields=fields)
            assert (answer.status, answer.body) == (401, b"")
    assert await client.metric("imgkeep_peer_requests_refused", node) == before + 3 * len(paths)
    assert (await client.ask(f"/fills/{key}", node)).status == 404  # clients do not reach it at all
