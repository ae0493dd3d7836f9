"""
Hurt a cluster under load in every way that the proof of it names, and count what clients noticed.

Each act stands for itself, on three nodes with networks of their own behind nginx (`tests/support/cluster_nodes.py`);
`tests/cluster/` runs short ones.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.cluster_clients import client_of, load, read_at_once
from tests.support.cluster_nodes import surroundings, three_nodes
from tests.support.counted_origin import counted_origin
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.cluster_clients import Client
    from tests.support.cluster_nodes import Node
    from tests.support.counted_origin import CountedOrigin

LARGE: Final = 5 * 2**20
CLIENTS: Final = 300
FIRST_BYTE_MS_MAX: Final = 100
JOB_HOST_MAX: Final = 4
TWICE_SHARE_MAX: Final = 0.02
KILL_INTERVAL_S: Final = (5, 10)
ABSENCE_S: Final = (0, 20)
JOB_TIMEOUT_S: Final = 600
RATE: Final = 40
"""Number of requests a second, half of them for new images."""


async def cold_link(client: Client, origin: CountedOrigin) -> list[str]:
    """Ask for one cold link from many clients."""
    # Slowly: what is measured is not how fast this machine copies. And not before all clients wait.
    origin.bytes_per_s, origin.answer_s = LARGE // 5, 1
    faults = []
    url = origin.gives("/cold.png", LARGE)
    start = time.monotonic()
    answers = await read_at_once(client.nodes.proxy, url, origin.bodies["/cold.png"], number=CLIENTS)
    late_ms = sorted((answer.first_s - origin.started_s["/cold.png"]) * 1000 for answer in answers)
    print(
        f"cold link: {CLIENTS} clients, {origin.asked['/cold.png']} origin fetch, "
        f"{len({answer.etag for answer in answers})} ETag, "
        f"{sum(answer.is_whole for answer in answers)} whole, first bytes p50 {late_ms[len(late_ms) // 2]:.0f} ms, "
        f"most {late_ms[-1]:.0f} ms after the origin's, {time.monotonic() - start:.1f} s in all"
    )
    if origin.asked["/cold.png"] != 1 or len({answer.etag for answer in answers}) != 1:
        faults.append("more than one fetch, or more than one ETag")
    if not all(answer.is_whole for answer in answers):
        faults.append("clients received other bytes")
    return faults


async def kills(client: Client, origin: CountedOrigin, links: int, draw: random.Random) -> list[str]:
    """Save two jobs while nodes are killed and come back, one of them without its disk."""
    origin.answer_s = 0.1
    urls = [origin.gives(f"/job/{number}.png", host=number % len(origin.addresses)) for number in range(links)]
    half = len(urls) // 2
    start = time.monotonic()
    jobs = [await client.post_job(part, webhook=origin.url("/hook")) for part in (urls[:half], urls[half:])]
    killed: Counter[str] = Counter()

    async def kill(node: Node, *, with_disk: bool) -> None:
        node.kill()
        killed[node.name] += 1
        if with_disk:
            node.lose_disk()
        await asyncio.sleep(draw.uniform(*ABSENCE_S))
        node.launch()

    async def kill_at_random() -> None:
        async with asyncio.TaskGroup() as group:
            for number in count():
                await asyncio.sleep(draw.uniform(*KILL_INTERVAL_S))
                running = [node for node in client.nodes.members if node.is_running]
                if len(running) > 1:  # one has to be asked
                    group.create_task(kill(draw.choice(running), with_disk=number == 1))

    killing = asyncio.create_task(kill_at_random())
    try:
        ended = [await client.until_done(job, within_s=JOB_TIMEOUT_S) for job in jobs]
    finally:
        killing.cancel()
        await asyncio.wait([killing])
    seconds = time.monotonic() - start
    client.nodes.restore()
    origin.answer_s = 0
    await asyncio.sleep(3)  # a webhook that comes twice comes now
    saved, twice = sum(job["saved"] for job in ended), origin.fetched_twice("/job/")
    most = max(origin.running_max.values())
    print(
        f"kills: {saved} of {links} saved in {seconds:.0f} s, {sum(killed.values())} kills ({dict(killed)}), {twice} "
        f"fetched twice ({twice / links:.1%}), at most {most} at once from a host, {len(origin.messages)} webhooks"
    )
    faults = []
    if saved != links:
        faults.append("not all links are saved")
    if twice > links * TWICE_SHARE_MAX:
        faults.append("too many links are fetched twice")
    if most > JOB_HOST_MAX:
        faults.append("a host is above its limit")
    if len(origin.messages) != len(jobs):
        faults.append(f"{len(origin.messages)} webhooks of {len(jobs)} jobs")
    return faults


async def removal(client: Client, origin: CountedOrigin, stale_max_s: float) -> list[str]:
    """Remove an image while a node is cut off from the database."""
    first, second, third = client.nodes.members
    url = origin.gives("/removed.png")
    for node in (first, second, third) * 2:
        await client.img(url, node)
    name = (await client.img(url)).headers["Content-Location"].rpartition("/")[2]
    third.host.lose(client.nodes.around.database_host.address)
    start = time.monotonic()
    status = (await client.remove(url, first)).status
    took_s = time.monotonic() - start
    others = [(await client.img(url, node)).status for node in (first, second)]
    with suppress(TimeoutError):
        await until(partial(_is_removed, client, url, third), within_s=3 * stale_max_s + 10)
    until_s = time.monotonic() - start
    gone = await _is_removed(client, url, third)
    third.host.restore()
    await asyncio.sleep(6)
    after = [(await client.img(url, node)).status for node in (first, second, third)]
    left = [path for path in await client.nodes.bucket.objects("v1/objects/") if path.endswith(name)]
    print(
        f"removal: {status} after {took_s:.1f} s, then {others} at the others, gone at the node that is cut off after "
        f"{until_s:.1f} s (cluster.stale_max_s is {stale_max_s:g}), {after} afterwards, {len(left)} objects left"
    )
    return [] if (status, others, gone, after, left) == (200, [410] * 2, True, [410] * 3, []) else ["removal"]


async def _is_removed(client: Client, url: str, node: Node) -> bool:
    return (await client.img(url, node)).status == HTTPStatus.GONE


async def outage(client: Client, origin: CountedOrigin, outage_s: float) -> list[str]:
    """Stop the database under load."""
    stored = [origin.gives(f"/stored/{number}.png") for number in range(50)]
    for url in stored:
        await client.img(url)
    api: Counter[str] = Counter()
    async with load(client, origin, stored, interval_s=2 / RATE) as answers:
        await asyncio.sleep(3)
        client.nodes.around.postgresql.stop()
        end = time.monotonic() + outage_s
        while time.monotonic() < end:
            refused = await client.ask("/api/jobs")
            api[f"{refused.status}{' with Retry-After' * ('Retry-After' in refused.headers)}"] += 1
            await asyncio.sleep(0.5)
        client.nodes.around.postgresql.start()
        start = time.monotonic()
        await asyncio.sleep(3)
    number = answers["new"]
    caught_s = await _until_listed(client, number + len(stored), start)
    print(
        f"outage of {outage_s:g} s: {dict(answers)}, API {dict(api)}, all listed at all nodes {caught_s:.1f} s after "
        f"the start of the database, {origin.fetched_twice('/new/')} fetched twice"
    )
    faults = []
    if set(answers) != {"new", "stored"}:
        faults.append("clients noticed the outage")
    if set(api) - {"503 with Retry-After", "200"}:
        faults.append("the API answers an outage otherwise than by 503 with Retry-After")
    if caught_s < 0:
        faults.append("not all images are listed afterwards")
    return faults


async def _until_listed(client: Client, number: int, start: float, within_s: float = 60) -> float:
    """Wait until every node lists so many images; return when it did, -1 where it does not."""
    while time.monotonic() - start < within_s:
        if all([await _count_images(client, node) >= number for node in client.nodes.members]):
            return time.monotonic() - start
        await asyncio.sleep(0.2)
    return -1


async def _count_images(client: Client, node: Node) -> int:
    found, cursor = 0, ""
    while True:
        page = (await client.ask(f"/api/images?limit=1000{cursor}", node)).json
        found += len(page["images"])
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


async def _act(
    folder: Path, act: Callable[[Client, CountedOrigin], Awaitable[list[str]]], **settings: str
) -> list[str]:
    """Run one act on nodes of its own."""
    with surroundings(folder) as around, three_nodes(around, folder, **settings) as nodes:
        async with counted_origin(around.network.gateways) as origin, client_of(nodes) as client:
            return await act(client, origin)


def main(links: int, outage_s: float, seed: int = 1) -> int:
    draw = random.Random(seed)
    acts: list[Callable[[Client, CountedOrigin], Awaitable[list[str]]]] = [
        cold_link,
        lambda client, origin: kills(client, origin, links, draw),
        lambda client, origin: removal(client, origin, 30),
        lambda client, origin: outage(client, origin, outage_s),
    ]
    faults = []
    for act in acts:
        with tempfile.TemporaryDirectory(prefix="imgkeep-chaos-") as folder:
            faults += asyncio.run(_act(Path(folder), act))
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0
