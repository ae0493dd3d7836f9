"""Jobs over HTTP: results, progress, retries, webhooks, lists and cancels."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from hmac import digest
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from imgkeep.bootstrap.platform import Platform
from tests.support.api_calls import job_done
from tests.support.clock import FakeClock
from tests.support.images import make_image
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import ClientResponse

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

KEY = "a-key-for-signing-webhooks"


async def submit(imgkeep: Imgkeep, urls: list[Any], **more: Any) -> tuple[int, dict[str, Any]]:
    response = await imgkeep.client.post("/api/save-images", json={"urls": urls, **more})
    return response.status, await response.json()


async def look(imgkeep: Imgkeep, job: str, **query: str) -> dict[str, Any]:
    response = await imgkeep.client.get(f"/api/jobs/{job}", params=query)
    assert response.status == 200
    job_facts: dict[str, Any] = await response.json()
    return job_facts


async def advance_until(clock: FakeClock, condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait for a fact, and let time pass meanwhile."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
            clock.advance(seconds)


async def _sleep_briefly(seconds: float) -> None:
    await asyncio.sleep(seconds / 100)


def hurried(clock: FakeClock) -> Platform:
    """Return a platform whose background tasks hurry, with the clock of the test."""
    return Platform(clock=clock, timer=lambda: clock.now.timestamp(), sleep=_sleep_briefly)  # noqa: PLW0108 - it moves


# --- links


async def test_each_link_has_its_result(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    good = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(3)]
    page = origin.gives("/page", b"<html>")
    urls = [*good, "nonsense", 7, None, {"url": good[0]}, page, origin.url("/missing"), good[0], "http://10.0.0.1/"]
    status, facts = await submit(imgkeep, urls, wait=True)
    assert status == 200
    assert (facts["state"], facts["total"], facts["saved"], facts["failed"]) == ("done", 11, 4, 7)
    results = facts["results"]
    assert [result["index"] for result in results] == list(range(11))
    codes = [result["error"]["code"] if result["state"] == "failed" else result["state"] for result in results]
    assert codes == [
        *["saved"] * 3,
        *["invalid_source"] * 4,
        "not_an_image",
        "source_not_found",
        "saved",
        "source_forbidden",
    ]
    for n, result in enumerate(results[:3]):
        assert result["image"]["digest"] == sha256(make_image(seed=n)).hexdigest()
        response = await imgkeep.client.get(URL(result["image"]["url"]).path)
        assert await response.read() == make_image(seed=n)
    assert results[0]["key"] == results[9]["key"]
    assert {results[0]["created"], results[9]["created"]} == {True, False}
    assert origin.asked("/0.png") == 1


async def test_job_runs_after_its_answer(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()
    active = most = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await go.wait()
        active -= 1
        await exchange.answer(make_image(seed=int(exchange.target[1:-4])))

    urls = [origin.on(f"/{n}.png", slow) for n in range(10)]
    response = await imgkeep.client.post("/api/save-images", json={"urls": urls})
    facts = await response.json()
    assert (response.status, facts["state"], facts["total"]) == (202, "queued", 10)
    assert response.headers["Location"].endswith(f"/api/jobs/{facts['id']}")
    await until(lambda: len(origin.seen) == 4)
    assert [result["state"] for result in (await look(imgkeep, facts["id"]))["results"]] == ["waiting"] * 10
    go.set()
    facts = await job_done(imgkeep, facts["id"])
    assert (facts["saved"], facts["failed"], most) == (10, 0, 4), "four at a time to one host"
    assert [r["index"] for r in (await look(imgkeep, facts["id"], after="6", limit="2"))["results"]] == [7, 8]


async def test_events_follow_the_progress(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def slow(exchange: Exchange) -> None:
        number = int(exchange.target[1:-4])
        await gates[number].wait()
        await exchange.answer(make_image(seed=number))

    _, facts = await submit(imgkeep, [origin.on(f"/{n}.png", slow) for n in range(3)])
    response = await imgkeep.client.get(f"/api/jobs/{facts['id']}/events")
    assert response.headers["Content-Type"] == "text/event-stream"
    events = []
    for gate in (None, *gates):
        if gate is not None:
            gate.set()
        events.append(await event(response))
    assert [(name, data["saved"]) for name, data in events] == [
        ("progress", 0),
        ("progress", 1),
        ("progress", 2),
        ("done", 3),
    ]
    assert await response.content.read() == b""
    again = await imgkeep.client.get(f"/api/jobs/{facts['id']}/events")
    assert (await event(again))[0] == "done"


async def event(response: ClientResponse) -> tuple[str, dict[str, Any]]:
    async with asyncio.timeout(20):
        block = (await response.content.readuntil(b"\n\n")).decode()
    fields = dict(line.split(": ", 1) for line in block.strip().splitlines())
    return fields["event"], json.loads(fields["data"])


async def test_only_passing_failures_are_tried_again(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    imgkeep = await start(platform=hurried(clock))

    async def flaky(exchange: Exchange) -> None:
        if exchange.number < 2:
            await exchange.answer(b"", status="503 Service Unavailable")
        else:
            await exchange.answer(make_image())

    flaky_url, dead = origin.on("/flaky.png", flaky), origin.url("/gone.png")
    _, facts = await submit(imgkeep, [flaky_url, dead])
    await advance_until(clock, lambda: origin.asked("/flaky.png") == 3)
    facts = await job_done(imgkeep, facts["id"])
    assert (facts["saved"], facts["failed"]) == (1, 1)
    assert origin.asked("/gone.png") == 1


async def test_link_is_tried_until_it_expires(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    provider = {
        "name": "Acme",
        "hosts": ["127.0.0.1"],
        "signed_by": {"sig": "hex64", "end": "epoch"},
        "expires": ["epoch end"],
    }
    imgkeep = await start(platform=hurried(clock), sources={"providers": [provider]})
    end = int(clock.now.timestamp()) + 90
    url = origin.gives("/a.png", b"", status="503 Service Unavailable") + f"?sig={'0a' * 32}&end={end}"
    _, facts = await submit(imgkeep, [url])
    async with asyncio.timeout(20):
        while (facts := await look(imgkeep, facts["id"]))["state"] != "done":
            await asyncio.sleep(0.03)
            clock.advance(10)
    assert facts["results"][0]["error"]["code"] == "origin_error"
    assert 3 <= origin.asked("/a.png") <= 10
    assert "sig=" not in str(rows_of(imgkeep, "SELECT * FROM items")), "the credential is gone"


def rows_of(imgkeep: Imgkeep, statement: str) -> list[Any]:
    with closing(sqlite3.connect(imgkeep.folder / "imgkeep.db")) as connection:
        return connection.execute(statement).fetchall()


async def test_jobs_survive_a_restart(start: Start, origin: FakeOrigin) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.gone()

    imgkeep = await start()
    first = origin.gives("/first.png", make_image())
    second = origin.on("/second.png", never)
    _, facts = await submit(imgkeep, [first, second])
    await until(lambda: origin.asked("/second.png") == 1)

    async def first_is_saved() -> bool:
        return bool((await look(imgkeep, facts["id"]))["saved"])

    await until(first_is_saved)
    await imgkeep.client.close()
    origin.gives("/second.png", make_image(seed=2))
    imgkeep = await start(folder=imgkeep.folder)
    facts = await job_done(imgkeep, facts["id"])
    assert (facts["saved"], origin.asked("/first.png")) == (2, 1)


# --- webhooks


async def test_webhook_is_signed_and_repeated_until_accepted(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    messages: list[tuple[Exchange, bytes]] = []

    async def hook(exchange: Exchange) -> None:
        assert exchange.reader is not None
        body = await exchange.reader.readexactly(int(exchange.headers["content-length"]))
        messages.append((exchange, body))
        await exchange.answer(b"", status="500 No" if len(messages) == 1 else "204 No Content")

    imgkeep = await start(security={"signing_keys": [KEY]}, platform=hurried(clock))
    urls = [origin.gives("/a.png", make_image()), "nonsense"]
    _, facts = await submit(imgkeep, urls, webhook=origin.on("/hook?token=x", hook))
    origin.scripts["/hook"] = hook
    await advance_until(clock, lambda: len(messages) == 2)
    await until(lambda: rows_of(imgkeep, "SELECT webhook FROM jobs") == [(None,)])
    assert len(messages) == 2
    exchange, body = messages[1]
    assert (exchange.method, exchange.target) == ("POST", "/hook?token=x")
    headers = exchange.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(digest(KEY.encode(), signed, sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    message = json.loads(body)
    assert (message["type"], message["data"]["id"]) == ("job.done", facts["id"])
    assert (message["data"]["saved"], message["data"]["failed"]) == (1, 1)


async def test_webhook_obeys_the_source_policy(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    imgkeep = await start(security={"signing_keys": [KEY]}, fetch={"allow_networks": []})
    _, facts = await submit(imgkeep, ["nonsense"], webhook=origin.url("/hook"))
    await job_done(imgkeep, facts["id"])
    await until(lambda: "webhook delivery failed" in caplog.text)
    assert origin.connections == 0


# --- malformed jobs


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "missing required field urls"),
        ({"urls": []}, "1 to 10000"),
        ({"urls": ["x"] * 10_001}, "1 to 10000"),
        ({"urls": "x"}, "urls: expected array"),
        ({"urls": ["x"], "wait": 1}, "wait: expected bool"),
        ({"urls": ["x"], "webhook": "https://a.example/"}, "security.signing_keys"),
        ({"urls": ["x"], "more": 1}, "unknown field more"),
    ],
)
async def test_malformed_job_is_refused(imgkeep: Imgkeep, body: dict[str, Any], says: str) -> None:
    response = await imgkeep.client.post("/api/save-images", json=body)
    facts = await response.json()
    assert (response.status, facts["code"]) == (400, "invalid_request")
    assert says in facts["detail"]


async def test_webhook_has_to_be_a_url(start: Start) -> None:
    imgkeep = await start(security={"signing_keys": [KEY]})
    status, facts = await submit(imgkeep, ["x"], webhook="ftp://a.example/")
    assert (status, facts["code"]) == (400, "invalid_source")


async def test_unknown_job_is_404(imgkeep: Imgkeep) -> None:
    for path in ("x", "0" * 32, "0" * 32 + "/events", "%00"):
        response = await imgkeep.client.get(f"/api/jobs/{path}")
        assert (response.status, (await response.json())["success"]) == (404, False)
    _, facts = await submit(imgkeep, ["x"])
    assert (await imgkeep.client.get(f"/api/jobs/{facts['id']}?limit=x")).status == 400


async def test_duplicates_cost_one_fetch(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    async with asyncio.timeout(60):
        status, facts = await submit(imgkeep, [url] * 500, wait=True)
    assert (status, facts["saved"], origin.asked("/a.png")) == (200, 500, 1)
    assert sum(result["created"] for result in facts["results"]) == 1


# --- lists and cancels


async def test_jobs_are_listed_by_pages(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    submitted = [(await submit(imgkeep, [url], wait=True))[1]["id"] for _ in range(3)]
    listed: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        facts = await (await imgkeep.client.get("/api/jobs", params={"limit": "2", **cursor})).json()
        listed += [job["id"] for job in facts["jobs"]]
        assert all(set(job) >= {"id", "state", "total", "saved", "failed", "created_at"} for job in facts["jobs"])
        if facts["next"] is None:
            break
        cursor = {"cursor": facts["next"]}
    assert sorted(listed) == sorted(submitted)
    for state, number in (("done", 3), ("cancelled", 0), ("queued", 0), ("running", 0)):
        facts = await (await imgkeep.client.get("/api/jobs", params={"state": state})).json()
        assert len(facts["jobs"]) == number


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("state=lost", "state has to be one of queued, running, done, cancelled"),
        ("limit=0", "limit has to be a number from 1 to 1000"),
        ("cursor=x", "cursor is not one that next has given"),
        ("page=2", "the parameters are cursor, limit, state, each given once at most"),
    ],
)
async def test_malformed_query_of_the_list_is_refused(imgkeep: Imgkeep, query: str, detail: str) -> None:
    response = await imgkeep.client.get(f"/api/jobs?{query}")
    assert (response.status, (await response.json())["detail"]) == (400, detail)


async def test_cancelled_job_starts_no_link_and_frees_its_permits(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(make_image(seed=1))

    _, facts = await submit(imgkeep, [origin.on(f"/slow{n}.png", slow) for n in range(10)])
    await until(lambda: len(origin.seen) == 4)
    waiting = asyncio.create_task(_wait_for_end(imgkeep, facts["id"]))
    response = await imgkeep.client.post(f"/api/jobs/{facts['id']}/cancel")
    job = await response.json()
    assert (response.status, job["state"], job["cancelled"]) == (200, "cancelled", 10)
    assert (await waiting)["state"] == "cancelled"
    # The places at this host are free, although its fetches have not ended.
    quick = origin.gives("/quick.png", make_image(seed=2))
    status, other = await submit(imgkeep, [quick], wait=True)
    assert (status, other["saved"]) == (200, 1)
    go.set()
    results = (await look(imgkeep, facts["id"]))["results"]
    assert {result["state"] for result in results} == {"cancelled"}
    assert all(len(result["key"]) == 64 and result["host"] == "127.0.0.1" for result in results)
    assert len([path for path in origin.seen if "slow" in str(path)]) <= 4
    again = await (await imgkeep.client.post(f"/api/jobs/{facts['id']}/cancel")).json()
    assert again == job


async def _wait_for_end(imgkeep: Imgkeep, job: str) -> dict[str, Any]:
    response = await imgkeep.client.get(f"/api/jobs/{job}/events")
    name = ""
    data: dict[str, Any] = {}
    while name != "done":
        name, data = await event(response)
    return data


async def test_cancel_needs_a_running_job(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    _, facts = await submit(imgkeep, [origin.gives("/a.png", make_image())], wait=True)
    response = await imgkeep.client.post(f"/api/jobs/{facts['id']}/cancel")
    assert (response.status, (await response.json())["state"]) == (200, "done")
    assert (await imgkeep.client.post(f"/api/jobs/{'0' * 32}/cancel")).status == 404
    response = await imgkeep.client.get(f"/api/jobs/{facts['id']}/cancel")
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert "use POST" in (await response.json())["detail"]


async def test_cancelled_job_survives_a_restart(start: Start, origin: FakeOrigin) -> None:
    async def never(_: Exchange) -> None:
        await asyncio.Event().wait()

    first = await start()
    _, facts = await submit(first, [origin.on(f"/{n}.png", never) for n in range(3)])
    await until(lambda: len(origin.seen) == 3)
    await first.client.post(f"/api/jobs/{facts['id']}/cancel")
    await first.client.close()
    fetches = len(origin.seen)
    again = await start(folder=first.folder)
    assert (await look(again, facts["id"]))["state"] == "cancelled"
    status, other = await submit(again, [origin.gives("/other.png", make_image())], wait=True)
    assert (status, other["saved"], len(origin.seen)) == (200, 1, fetches + 1), "the runner has started no other link"


async def test_failed_link_has_host_and_key(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    missing = origin.url("/missing.png")
    status, facts = await submit(imgkeep, [missing, "nonsense"], wait=True)
    assert status == 200
    inspected = await (await imgkeep.client.get("/api/inspect", params={"src": missing})).json()
    failed, nonsense = facts["results"]
    assert (failed["state"], failed["host"], failed["key"]) == ("failed", "127.0.0.1", inspected["key"])
    assert "host" not in nonsense
    assert "key" not in nonsense
