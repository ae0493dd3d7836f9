"""Many links at once: jobs, their progress, and who is told."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta
from hashlib import sha256
from hmac import digest
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from imgkeep.bootstrap.server import Platform
from yarl import URL

from tests.support.clock import FakeClock
from tests.support.pictures import picture
from tests.support.program import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import ClientResponse

    from tests.conftest import Imgkeep
    from tests.support.origins import Exchange, FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]

KEY = "a-key-for-signing-webhooks"


async def submit(imgkeep: Imgkeep, urls: list[Any], **more: Any) -> tuple[int, dict[str, Any]]:
    response = await imgkeep.client.post("/api/save-images", json={"urls": urls, **more})
    return response.status, await response.json()


async def look(imgkeep: Imgkeep, job: str, **query: str) -> dict[str, Any]:
    response = await imgkeep.client.get(f"/api/jobs/{job}", params=query)
    assert response.status == 200
    told: dict[str, Any] = await response.json()
    return told


async def done(imgkeep: Imgkeep, job: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (told := await look(imgkeep, job))["state"] != "done":  # noqa: ASYNC110 - as any client
            await asyncio.sleep(0.02)
    return told


async def _sleep_briefly(seconds: float) -> None:
    await asyncio.sleep(seconds / 100)


def hurried(clock: FakeClock) -> Platform:
    """All that waits in the background hurries, and both clocks are the test's."""
    return Platform(clock=clock, timer=lambda: clock.now.timestamp(), sleep=_sleep_briefly)  # noqa: PLW0108 - it moves


# --- what becomes of links


async def test_each_link_has_its_result_and_what_is_no_link_fails_alone(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    good = [origin.gives(f"/{n}.png", picture(seed=n)) for n in range(3)]
    page = origin.gives("/page", b"<html>")
    urls = [*good, "nonsense", 7, None, {"url": good[0]}, page, origin.url("/missing"), good[0], "http://10.0.0.1/"]
    status, told = await submit(imgkeep, urls, wait=True)
    assert status == 200
    assert (told["state"], told["total"], told["saved"], told["failed"]) == ("done", 11, 4, 7)
    results = told["results"]
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
        assert result["image"]["digest"] == sha256(picture(seed=n)).hexdigest()
        response = await imgkeep.client.get(URL(result["image"]["url"]).path)
        assert await response.read() == picture(seed=n)
    assert results[0]["key"] == results[9]["key"]
    assert {results[0]["created"], results[9]["created"]} == {True, False}
    assert origin.asked("/0.png") == 1


async def test_a_job_goes_on_behind_the_answer(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(picture(seed=int(exchange.target[1:-4])))

    urls = [origin.on(f"/{n}.png", slow) for n in range(10)]
    response = await imgkeep.client.post("/api/save-images", json={"urls": urls})
    told = await response.json()
    assert (response.status, told["state"], told["total"]) == (202, "queued", 10)
    assert response.headers["Location"].endswith(f"/api/jobs/{told['id']}")
    await until(lambda: len(origin.seen) == 4)
    await asyncio.sleep(0.05)
    assert len(origin.seen) == 4, "no more at a time to one host"
    assert [result["state"] for result in (await look(imgkeep, told["id"]))["results"]] == ["waiting"] * 10
    go.set()
    told = await done(imgkeep, told["id"])
    assert (told["saved"], told["failed"]) == (10, 0)
    assert [r["index"] for r in (await look(imgkeep, told["id"], after="6", limit="2"))["results"]] == [7, 8]


async def test_progress_is_told_as_it_happens(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    turns = [asyncio.Event() for _ in range(3)]

    async def slow(exchange: Exchange) -> None:
        number = int(exchange.target[1:-4])
        await turns[number].wait()
        await exchange.answer(picture(seed=number))

    _, told = await submit(imgkeep, [origin.on(f"/{n}.png", slow) for n in range(3)])
    response = await imgkeep.client.get(f"/api/jobs/{told['id']}/events")
    assert response.headers["Content-Type"] == "text/event-stream"
    events = []
    for turn in (None, *turns):
        if turn is not None:
            turn.set()
        events.append(await event(response))
    assert [(name, data["saved"]) for name, data in events] == [
        ("progress", 0),
        ("progress", 1),
        ("progress", 2),
        ("done", 3),
    ]
    assert await response.content.read() == b""
    again = await imgkeep.client.get(f"/api/jobs/{told['id']}/events")
    assert (await event(again))[0] == "done"


async def event(response: ClientResponse) -> tuple[str, dict[str, Any]]:
    async with asyncio.timeout(20):
        block = (await response.content.readuntil(b"\n\n")).decode()
    fields = dict(line.split(": ", 1) for line in block.strip().splitlines())
    return fields["event"], json.loads(fields["data"])


async def test_what_may_pass_is_tried_again_and_what_will_not_is_not(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    imgkeep = await start(platform=hurried(clock))

    async def flaky(exchange: Exchange) -> None:
        if exchange.number < 2:
            await exchange.answer(b"", status="503 Service Unavailable")
        else:
            await exchange.answer(picture())

    flaky_url, dead = origin.on("/flaky.png", flaky), origin.url("/gone.png")
    _, told = await submit(imgkeep, [flaky_url, dead])
    while origin.asked("/flaky.png") < 3:
        await asyncio.sleep(0.01)
        clock.now += timedelta(seconds=60)
    told = await done(imgkeep, told["id"])
    assert (told["saved"], told["failed"]) == (1, 1)
    assert origin.asked("/gone.png") == 1


async def test_a_link_is_tried_until_it_expires_and_forgotten_then(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    provider = {
        "name": "Acme",
        "hosts": ["127.0.0.1"],
        "signed_by": {"sig": "hex64", "end": "epoch"},
        "expires": ["epoch end"],
    }
    imgkeep = await start(platform=hurried(clock), sources={"providers": [provider]})
    end = int((clock.now + timedelta(seconds=90)).timestamp())
    url = origin.gives("/a.png", b"", status="503 Service Unavailable") + f"?sig={'0a' * 32}&end={end}"
    _, told = await submit(imgkeep, [url])
    for _ in range(12):
        await asyncio.sleep(0.03)
        clock.now += timedelta(seconds=10)
    told = await done(imgkeep, told["id"])
    assert told["results"][0]["error"]["code"] == "origin_error"
    assert 3 <= origin.asked("/a.png") <= 10
    engine = sa.create_engine(f"sqlite:///{imgkeep.folder}/imgkeep.db")
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM items")).all()
    engine.dispose()
    assert "sig=" not in str(rows), "the credential is gone"


async def test_jobs_survive_a_restart(start: Start, origin: FakeOrigin) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.gone()

    imgkeep = await start()
    first = origin.gives("/first.png", picture())
    second = origin.on("/second.png", never)
    _, told = await submit(imgkeep, [first, second])
    await until(lambda: origin.asked("/second.png") == 1)
    async with asyncio.timeout(20):
        while (await look(imgkeep, told["id"]))["saved"] == 0:  # noqa: ASYNC110 - as any client
            await asyncio.sleep(0.01)
    await imgkeep.client.close()
    origin.gives("/second.png", picture(seed=2))
    imgkeep = await start(folder=imgkeep.folder)
    told = await done(imgkeep, told["id"])
    assert (told["saved"], origin.asked("/first.png")) == (2, 1)


# --- webhooks


async def test_whoever_wants_to_is_told_by_a_signed_message_until_it_is_taken(start: Start, origin: FakeOrigin) -> None:
    clock = FakeClock()
    messages: list[tuple[Exchange, bytes]] = []

    async def hook(exchange: Exchange) -> None:
        assert exchange.reader is not None
        body = await exchange.reader.readexactly(int(exchange.headers["content-length"]))
        messages.append((exchange, body))
        await exchange.answer(b"", status="500 No" if len(messages) == 1 else "204 No Content")

    imgkeep = await start(security={"signing_keys": [KEY]}, platform=hurried(clock))
    urls = [origin.gives("/a.png", picture()), "nonsense"]
    _, told = await submit(imgkeep, urls, webhook=origin.on("/hook?token=x", hook))
    origin.scripts["/hook"] = hook
    await until(lambda: len(messages) == 1)
    clock.now += timedelta(seconds=60)
    await until(lambda: len(messages) == 2)
    clock.now += timedelta(seconds=6000)
    await asyncio.sleep(0.1)
    assert len(messages) == 2
    exchange, body = messages[1]
    assert (exchange.method, exchange.target) == ("POST", "/hook?token=x")
    headers = exchange.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(digest(KEY.encode(), signed, sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    message = json.loads(body)
    assert (message["type"], message["data"]["id"]) == ("job.done", told["id"])
    assert (message["data"]["saved"], message["data"]["failed"]) == (1, 1)


async def test_no_message_goes_where_no_image_may_come_from(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    imgkeep = await start(security={"signing_keys": [KEY]}, fetch={"allow_networks": []})
    _, told = await submit(imgkeep, ["nonsense"], webhook=origin.url("/hook"))
    await done(imgkeep, told["id"])
    await until(lambda: "nobody could be told" in caplog.text)
    assert origin.connections == 0


# --- what is no job


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
async def test_what_is_no_job_is_told_so(imgkeep: Imgkeep, body: dict[str, Any], says: str) -> None:
    response = await imgkeep.client.post("/api/save-images", json=body)
    told = await response.json()
    assert (response.status, told["code"]) == (400, "invalid_request")
    assert says in told["detail"]


async def test_a_webhook_has_to_be_a_url(start: Start) -> None:
    imgkeep = await start(security={"signing_keys": [KEY]})
    status, told = await submit(imgkeep, ["x"], webhook="ftp://a.example/")
    assert (status, told["code"]) == (400, "invalid_source")


async def test_there_are_only_jobs_that_were_made(imgkeep: Imgkeep) -> None:
    for path in ("x", "0" * 32, "0" * 32 + "/events", "%00"):
        response = await imgkeep.client.get(f"/api/jobs/{path}")
        assert (response.status, (await response.json())["success"]) == (404, False)
    _, told = await submit(imgkeep, ["x"])
    assert (await imgkeep.client.get(f"/api/jobs/{told['id']}?limit=x")).status == 400


async def test_thousands_of_duplicates_cost_one_fetch(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", picture())
    async with asyncio.timeout(60):
        status, told = await submit(imgkeep, [url] * 2000, wait=True)
    assert (status, told["saved"], origin.asked("/a.png")) == (200, 2000, 1)
    assert sum(result["created"] for result in told["results"]) == 1


# --- listed, and ended


async def test_jobs_are_listed_a_page_at_a_time(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", picture())
    submitted = [(await submit(imgkeep, [url], wait=True))[1]["id"] for _ in range(3)]
    listed: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        told = await (await imgkeep.client.get("/api/jobs", params={"limit": "2", **cursor})).json()
        listed += [job["id"] for job in told["jobs"]]
        assert all(set(job) >= {"id", "state", "total", "saved", "failed", "created_at"} for job in told["jobs"])
        if told["next"] is None:
            break
        cursor = {"cursor": told["next"]}
    assert sorted(listed) == sorted(submitted)
    for state, number in (("done", 3), ("cancelled", 0), ("queued", 0), ("running", 0)):
        told = await (await imgkeep.client.get("/api/jobs", params={"state": state})).json()
        assert len(told["jobs"]) == number


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("state=lost", "state has to be one of queued, running, done, cancelled"),
        ("limit=0", "limit has to be a number from 1 to 1000"),
        ("cursor=x", "cursor is none that next has given"),
        ("page=2", "the parameters are cursor, limit, state, each given once at most"),
    ],
)
async def test_list_that_is_asked_for_wrongly_says_what_it_takes(imgkeep: Imgkeep, query: str, detail: str) -> None:
    response = await imgkeep.client.get(f"/api/jobs?{query}")
    assert (response.status, (await response.json())["detail"]) == (400, detail)


async def test_cancelled_job_begins_no_link_any_more_and_frees_its_places(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(picture(seed=1))

    _, told = await submit(imgkeep, [origin.on(f"/slow{n}.png", slow) for n in range(10)])
    await until(lambda: len(origin.seen) == 4)
    waiting = asyncio.create_task(_wait_for_end(imgkeep, told["id"]))
    response = await imgkeep.client.post(f"/api/jobs/{told['id']}/cancel")
    job = await response.json()
    assert (response.status, job["state"], job["cancelled"]) == (200, "cancelled", 10)
    assert (await waiting)["state"] == "cancelled"
    # The places at this host are free, although its fetches have not ended.
    quick = origin.gives("/quick.png", picture(seed=2))
    status, other = await submit(imgkeep, [quick], wait=True)
    assert (status, other["saved"]) == (200, 1)
    go.set()
    results = (await look(imgkeep, told["id"]))["results"]
    assert {result["state"] for result in results} == {"cancelled"}
    assert all(len(result["key"]) == 64 and result["host"] == "127.0.0.1" for result in results)
    assert len([path for path in origin.seen if "slow" in str(path)]) <= 4
    again = await (await imgkeep.client.post(f"/api/jobs/{told['id']}/cancel")).json()
    assert again == job


async def _wait_for_end(imgkeep: Imgkeep, job: str) -> dict[str, Any]:
    response = await imgkeep.client.get(f"/api/jobs/{job}/events")
    name = ""
    data: dict[str, Any] = {}
    while name != "done":
        name, data = await event(response)
    return data


async def test_job_that_is_done_is_not_cancelled_and_one_that_is_none_is_404(
    imgkeep: Imgkeep, origin: FakeOrigin
) -> None:
    _, told = await submit(imgkeep, [origin.gives("/a.png", picture())], wait=True)
    response = await imgkeep.client.post(f"/api/jobs/{told['id']}/cancel")
    assert (response.status, (await response.json())["state"]) == (200, "done")
    assert (await imgkeep.client.post(f"/api/jobs/{'0' * 32}/cancel")).status == 404
    response = await imgkeep.client.get(f"/api/jobs/{told['id']}/cancel")
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert "use POST" in (await response.json())["detail"]


async def test_cancelled_job_stays_cancelled_after_a_restart(start: Start, origin: FakeOrigin) -> None:
    async def never(_: Exchange) -> None:
        await asyncio.Event().wait()

    first = await start()
    _, told = await submit(first, [origin.on(f"/{n}.png", never) for n in range(3)])
    await until(lambda: len(origin.seen) == 3)
    await first.client.post(f"/api/jobs/{told['id']}/cancel")
    await first.client.close()
    asked = len(origin.seen)
    again = await start(folder=first.folder)
    assert (await look(again, told["id"]))["state"] == "cancelled"
    await asyncio.sleep(0.2)
    assert len(origin.seen) == asked


async def test_each_link_that_failed_is_told_by_host_and_key(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    missing = origin.url("/missing.png")
    status, told = await submit(imgkeep, [missing, "nonsense"], wait=True)
    assert status == 200
    inspected = await (await imgkeep.client.get("/api/inspect", params={"src": missing})).json()
    failed, nonsense = told["results"]
    assert (failed["state"], failed["host"], failed["key"]) == ("failed", "127.0.0.1", inspected["key"])
    assert "host" not in nonsense
    assert "key" not in nonsense
