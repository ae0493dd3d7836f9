"""
A stranger who claims to be this machine, or another client.

Claims are header fields, addresses, names, cookies and pages. What counts is what is answered, fetched and stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from imgkeep import config
from imgkeep.bootstrap.platform import Platform
from imgkeep.core.http_headers import FORWARDED_HEADERS
from imgkeep.storage.local.machine_token import make_token
from imgkeep.web.auth import AUTH
from imgkeep.web.login_tickets import COOKIE, LINK_LIFETIME_S, SESSION_LIFETIME_S, make_log_in_link, make_ticket
from imgkeep.web.request_response import ImageRequest
from imgkeep.web.request_state import RequestLog
from tests.support.clock import FakeClock
from tests.support.images import make_image
from tests.support.nginx import BARE, nginx, shipped
from tests.support.program import ROOT, cannot, run, serving
from tests.support.raw_http import port_of, split, talk, target_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.program import Program
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

KEY = "0" * 64
API = (
    ("GET", "/api/inspect?src=https://a.example/"),
    ("POST", "/api/save-image"),
    ("POST", "/api/save-images"),
    ("POST", "/api/rewrite"),
    ("GET", f"/api/jobs/{KEY[:32]}"),
    ("GET", f"/api/jobs/{KEY[:32]}/events"),
    ("GET", "/api/images"),
    ("DELETE", f"/api/images?digest={KEY}"),
    ("GET", f"/api/images/{KEY}"),
    ("DELETE", f"/api/images/{KEY}"),
)
FORGED = {
    **{name: "for=198.51.100.9" if name == "forwarded" else "198.51.100.9" for name in FORWARDED_HEADERS},
    "X-Forwarded-Host": "127.0.0.1",
    "X-Forwarded-Proto": "http",
    "X-Original-URL": "/api/images",
    "Client-IP": "127.0.0.1",
    "Via": "1.1 localhost",
}


def forged(address: str) -> dict[str, str]:
    """Return every header field by which a client could claim an address."""
    return {name: value.replace("198.51.100.9", address) for name, value in FORGED.items()}


def clients(program: Program) -> list[str]:
    """The addresses in the records of requests for images."""
    records = [json.loads(line) for line in program.log if '"imgkeep.access"' in line]
    return [record["client"] for record in records if record["route"] == "/img"]


async def links_of(program: Program) -> list[str]:
    """The log-in links of a start, which are logged behind the address."""

    def links() -> list[str]:
        return re.findall(r'"link":"([^"]*)"', "".join(program.log))

    await until(lambda: bool(links()))
    return links()


@asynccontextmanager
async def client_at(address: str) -> AsyncGenerator[aiohttp.ClientSession]:
    """A client that has this address of the loopback network, and really has it."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


# --- one header tells the client


async def test_shipped_nginx_reports_the_true_client(tmp_path: Path, origin: FakeOrigin) -> None:
    settings: dict[str, Any] = {"server__trusted_proxies": "127.0.0.1/32", "limits__fills_per_minute": "2"}
    async with (
        serving(tmp_path / "data", **settings) as program,
        nginx(tmp_path / "nginx", shipped(), program.address) as address,
    ):

        async def fetch(client: str, n: int, claims: Mapping[str, str]) -> int:
            url = origin.gives(f"/{client}.{n}.png", make_image(seed=n))
            async with client_at(client) as session:
                target = URL(f"http://{address}{target_of(url)}", encoded=True)
                async with session.get(target, headers=claims) as response:
                    return response.status

        # Once in each field alone, and in all of them.
        claims = [{name: value} for name, value in forged("192.0.2.1").items() if name != "Via"]
        statuses = [await fetch("127.0.0.2", n, each) for n, each in enumerate([*claims, forged("127.0.0.3")])]
        assert statuses == [200] * 2 + [429] * (len(claims) - 1), "new claims, the same client"
        assert await fetch("127.0.0.3", 0, {}) == 200, "the claims of a client lock no other client out"
        await until(lambda: len(clients(program)) == len(claims) + 2)
        assert clients(program) == ["127.0.0.2"] * (len(claims) + 1) + ["127.0.0.3"]
        assert len(origin.seen) == 3
        async with client_at("127.0.0.2") as session:
            for path in ("/api", "/api/images", "/login", "/readyz", "/metrics", "/openapi.json"):
                async with session.get(f"http://{address}{path}", headers=forged("127.0.0.1")) as response:
                    assert (response.status, response.headers["Content-Type"]) == (404, "text/html"), path


@pytest.mark.parametrize("name", ["deploy/nginx.conf", "examples/nginx/nginx.conf"])
def test_shipped_configurations_overwrite_all_client_headers(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    set_to = {
        field.lower(): value
        for field, value in re.findall(r"^ *proxy_set_header ([\w-]+) ([^;]*);", text, re.MULTILINE)
    }
    assert set_to["x-forwarded-for"] == "$remote_addr"
    others = {*FORWARDED_HEADERS, "x-forwarded-host", "x-forwarded-proto"} - {"x-forwarded-for"}
    assert {name: set_to.get(name) for name in others} == dict.fromkeys(others, '""')


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "CF-Connecting-IP", ""])
async def test_only_the_header_that_is_named_counts(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    caplog.set_level("INFO", "imgkeep.access")
    server = {"trusted_proxies": ["127.0.0.0/8"], "forwarded_header": header}
    imgkeep = await start(server=server, limits={"fills_per_minute": 3})
    statuses = []
    for n in range(6):
        claims = forged(f"192.0.2.{n}")
        if header:
            claims[header.lower()] = "for=203.0.113.7" if header == "forwarded" else "203.0.113.7"
        response = await imgkeep.img(origin.gives(f"/{n}.png", make_image(seed=n)), headers=claims | {"Via": "1.1 a"})
        statuses.append(response.status)
    assert statuses == [200] * 3 + [429] * 3
    reply = {record.client for record in caplog.records if record.name == "imgkeep.access"}  # type: ignore[attr-defined]
    assert reply == {"203.0.113.7" if header else "127.0.0.1"}


@pytest.mark.parametrize(
    "claim",
    [
        b"\xff",
        b"203.0.113.7, \xff",
        b"203.0.113.7,",
        b"fe80::1%\x1b]0;",
        b"203.0.113.7 forged=1",
        b"1" * 5000,
        b"10.0.0.1," * 900,
        b'"203.0.113.7"',
        b"for=203.0.113.7",
    ],
)
async def test_malformed_client_header_counts_as_the_proxy(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture, claim: bytes
) -> None:
    caplog.set_level("INFO", "imgkeep.access")
    imgkeep = await start(server={"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}, limits={"fills_per_minute": 1})
    for n in range(2):
        target = target_of(origin.gives(f"/{n}.png", make_image(seed=n))).encode()
        head = b"GET %s HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: %s\r\nConnection: close\r\n\r\n"
        await talk(port_of(imgkeep), head % (target, claim))
    reply = {record.client for record in caplog.records if record.name == "imgkeep.access"}  # type: ignore[attr-defined]
    assert reply <= {"127.0.0.1", "10.0.0.1"}
    assert len(origin.seen) <= 1, "all of them share the limits of the proxy"


@pytest.mark.parametrize(
    ("claims", "is_local"),
    [
        ({}, True),
        ({"X-Forwarded-For": "127.0.0.1"}, False),
        ({"X-Forwarded-For": "127.0.0.1, 10.0.0.1"}, False),
        ({"X-Forwarded-For": "::ffff:127.0.0.1"}, False),
        ({"X-Forwarded-For": "nonsense"}, False),
        ({"X-Forwarded-For": ""}, False),
        ({"X-Real-IP": "127.0.0.1"}, True),
    ],
    ids=str,
)
async def test_forwarded_loopback_client_is_not_local(start: Start, claims: dict[str, str], *, is_local: bool) -> None:
    imgkeep = await start(server={"trusted_proxies": ["127.0.0.1/32", "10.0.0.0/8"]})
    assert imgkeep.client.app is not None
    ask = ImageRequest(
        route="/img",
        name="",
        head=False,
        target="/img",
        fields=CIMultiDict(claims),
        remote="127.0.0.1",
        accepts_chunked=True,
        request_log=RequestLog(),
    )
    assert imgkeep.client.app[AUTH].identify_client(ask).loopback is is_local


# --- local needs proof


async def test_bare_proxy_opens_neither_the_api_nor_the_limits(tmp_path: Path, origin: FakeOrigin) -> None:
    settings: dict[str, Any] = {"server__workers": "2", "limits__fills_per_minute": "4"}
    async with (
        serving(tmp_path / "data", **settings) as program,
        nginx(tmp_path / "nginx", BARE, program.address) as address,
        client_at("127.0.0.9") as session,
    ):
        stored = await program.img(origin.gives("/a.png", make_image(seed=99)))
        assert stored.status == 200

        async def attack(method: str, path: str, headers: Mapping[str, str]) -> int:
            async with session.request(method, f"http://{address}{path}", headers=headers, data=b"{}") as response:
                reply = await response.json()
                assert (reply["code"], reply["success"]) == ("unauthorized", False)
                assert str(tmp_path) not in str(reply), "a stranger is not told where the token lies"
                return response.status

        here = {"Origin": f"http://{program.address}", "Sec-Fetch-Site": "same-origin", "Referer": "http://localhost/"}
        cookie = {"Cookie": f"{COOKIE}={make_ticket('', 'session', 2**33)}"}
        for claims in (
            {},
            forged("127.0.0.1"),
            here,
            here | cookie,
            {"Authorization": "Bearer"},
            {"X-Forwarded-For": "ÿ"},
        ):
            statuses = [await attack(method, path, claims) for method, path in API]
            assert statuses == [401] * len(API)
        urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(12)]
        statuses = []
        for n, url in enumerate(urls):
            target = URL(f"http://{address}{target_of(url)}", encoded=True)
            async with session.get(target, headers=forged(f"192.0.2.{n}") | {"Via": "1.1 a"}) as response:
                statuses.append(response.status)
        assert statuses.count(200) <= 4, "two for each worker"
        assert len(origin.seen) == 1 + statuses.count(200)
        # The holder of the token is let in through the same proxy, by every worker.
        for _ in range(8):
            allowed = {"Authorization": f"Bearer {program.token}"}
            async with session.get(f"http://{address}/api/images", headers=allowed) as response:
                assert response.status == 200
        # So is the holder of the link, which is printed once for all workers.
        [link] = await links_of(program)
        for _ in range(4):
            async with program.session.get(link, allow_redirects=False) as response:
                assert (response.status, COOKIE in response.headers["Set-Cookie"]) == (303, True)
        assert program.token not in "".join(program.log)


async def test_every_route_of_the_api_wants_a_token(start: Start) -> None:
    for sections in ({}, {"server": {"host": "0.0.0.0"}}, {"security": {"api_tokens": ["t" * 20]}}):
        imgkeep = await start(**sections)
        app = imgkeep.client.app
        assert app is not None
        for resource in app.router.resources():
            path = resource.canonical.replace("{key}", KEY).replace("{id}", KEY[:32])
            if not path.startswith("/api/"):
                continue
            for method in {route.method for route in resource}:
                async with imgkeep.stranger.request(method, path) as response:
                    assert response.status == HTTPStatus.UNAUTHORIZED, (method, path)
        for method, path in API:
            assert path.partition("?")[0].startswith("/api/")
            async with imgkeep.stranger.request(method, path, headers=forged("127.0.0.1")) as response:
                assert response.status == HTTPStatus.UNAUTHORIZED


async def test_own_token_is_not_taken_where_the_operator_names_others(start: Start) -> None:
    imgkeep = await start()
    token = imgkeep.token
    other = await start(security={"api_tokens": ["t" * 20]})
    async with other.stranger.get("/api/images", headers={"Authorization": f"Bearer {token}"}) as response:
        assert response.status == HTTPStatus.UNAUTHORIZED


# --- the file


async def test_all_that_start_together_have_one_token(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    tokens = await asyncio.gather(*(asyncio.to_thread(make_token, folder) for _ in range(32)))
    assert len(set(tokens)) == 1
    assert len(tokens[0]) == 43
    files = list(folder.iterdir())
    assert [file.name for file in files] == ["api-token"], "nothing is left behind"
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert files[0].stat().st_nlink == 1


def plant_open(path: Path) -> None:
    path.write_text("t" * 43)
    path.chmod(0o644)


def plant_link(path: Path) -> None:
    theirs = path.with_name("theirs")
    theirs.write_text("t" * 43)
    theirs.chmod(0o600)
    path.symlink_to(theirs)


def plant_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("theirs"))


def plant_pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def plant_folder(path: Path) -> None:
    path.mkdir(0o700)


def plant_short(path: Path) -> None:
    path.write_text("t")
    path.chmod(0o600)


def plant_empty(path: Path) -> None:
    path.touch(0o600)


def plant_large(path: Path) -> None:
    path.write_text("t" * 100_000)
    path.chmod(0o600)


def plant_lines(path: Path) -> None:
    path.write_text("t" * 20 + "\nX-Evil: 1\n")
    path.chmod(0o600)


@pytest.mark.parametrize(
    "plant",
    [
        plant_open,
        plant_link,
        plant_dangling_link,
        plant_pipe,
        plant_folder,
        plant_short,
        plant_empty,
        plant_large,
        plant_lines,
    ],
)
async def test_planted_token_closes_the_api(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: Callable[[Path], None]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    plant(folder / "api-token")
    imgkeep = await start()
    for token in ("t" * 43, "t", "", "t" * 20):
        async with imgkeep.stranger.get("/api/images", headers={"Authorization": f"Bearer {token}"}) as response:
            assert response.status == HTTPStatus.UNAUTHORIZED
            assert "security.api_tokens" in (await response.json())["detail"]
    [record] = [record for record in caplog.records if record.getMessage() == "the API is closed"]
    assert "api-token" in record.reason  # type: ignore[attr-defined]
    assert not (folder / "theirs").exists() or plant is plant_link


async def test_foreign_token_closes_the_api(start: Start, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        cannot("only root can give a file away")
    folder = tmp_path / "data"
    await asyncio.to_thread(make_token, folder)
    token = (folder / "api-token").read_text().strip()
    os.chown(folder / "api-token", 12345, 12345)
    imgkeep = await start()
    async with imgkeep.stranger.get("/api/images", headers={"Authorization": f"Bearer {token}"}) as response:
        assert response.status == HTTPStatus.UNAUTHORIZED


async def test_folder_that_takes_no_file_closes_the_api_and_nothing_else(
    start: Start, origin: FakeOrigin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("not a folder")
    imgkeep = await start(database={"url": f"sqlite:{tmp_path}/imgkeep.db"})
    response = await imgkeep.img(origin.gives("/a.png", make_image()))
    assert (response.status, await response.read()) == (200, make_image())
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer "}):
        async with imgkeep.stranger.get("/api/images", headers=headers) as refused:
            assert refused.status == HTTPStatus.UNAUTHORIZED
            assert "the API is closed" in (await refused.json())["detail"]
    [record] = [record for record in caplog.records if record.getMessage() == "the API is closed"]
    assert record.reason.startswith("the file api-token cannot be made: ")  # type: ignore[attr-defined]


# --- browsers


NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def epoch(seconds: int = 0) -> int:
    return int(NOW.timestamp()) + seconds


@asynccontextmanager
async def browser() -> AsyncGenerator[aiohttp.ClientSession]:
    """A client that keeps cookies, of addresses too, and does not follow."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def test_log_in_link_of_the_start_opens_the_api_for_its_browser(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as program:
        [link] = await links_of(program)
        assert link.startswith(f"http://{program.address}/login?ticket=")
        assert program.token not in "".join(program.log)
        async with browser() as session:
            async with session.get(link, allow_redirects=False) as response:
                assert (response.status, response.headers["Location"]) == (303, "/")
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["Referrer-Policy"] == "no-referrer"
                cookie = response.headers["Set-Cookie"]
                assert program.token not in cookie
                attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
                assert {"httponly", "samesite=strict", "path=/", f"max-age={SESSION_LIFETIME_S}"} <= attributes
            async with program.session.get(
                f"http://{program.address}/api/images", headers={"Authorization": ""}
            ) as response:
                assert "`imgkeep token --login`" in (await response.json())["detail"]
            async with session.get(f"http://{program.address}/api/images") as response:
                assert (await response.json())["images"] == []
            async with session.delete(f"http://{program.address}/api/images/{KEY}") as response:
                assert response.status == HTTPStatus.UNAUTHORIZED, "no page of ours asks"
            own = {"Origin": f"http://{program.address}"}
            async with session.delete(f"http://{program.address}/api/images/{KEY}", headers=own) as response:
                assert response.status == HTTPStatus.NOT_FOUND
        port = program.address.rpartition(":")[2]
        status, out, _ = await run(tmp_path / "data", "token", "--login", server__port=port)
        assert (status, out.partition("?")[0]) == (0, link.partition("?")[0])
        async with browser() as session, session.get(out.strip()) as response:
            assert (response.status, response.url.path) == (200, "/")
        tokens = {"server__port": port, "security__api_tokens": "t" * 20}
        assert (await run(tmp_path / "data", "token", "--login", stdin=b"", **tokens))[0] == 2


def test_link_of_an_ipv6_address_has_brackets() -> None:
    assert make_log_in_link("t" * 43, "::1", 8080, NOW).startswith("http://[::1]:8080/login?ticket=")


def tickets(token: str) -> dict[str, str]:
    good = make_ticket(token, "link", epoch(60))
    return {
        "nothing": "",
        "the token": token,
        "ended": make_ticket(token, "link", epoch()),
        "longer": good.replace(str(epoch(60)), str(epoch(61))),
        "of a session": make_ticket(token, "session", epoch(60)),
        "of another token": make_ticket("another", "link", epoch(60)),
        "in capitals": good.upper(),
        "with a zero": f"0{good}",
        "with a line": f"{good}\n",
        "cut": good[:-1],
    }


@pytest.mark.parametrize("which", list(tickets("")))
async def test_only_own_login_link_logs_in(start: Start, which: str) -> None:
    imgkeep = await start(platform=Platform(clock=FakeClock(NOW)))
    ticket = tickets(imgkeep.token)[which]
    async with imgkeep.stranger.get("/login", params={"ticket": ticket}, allow_redirects=False) as response:
        assert (response.status, "Set-Cookie" in response.headers) == (HTTPStatus.UNAUTHORIZED, False)
    async with imgkeep.stranger.get("/api/images", headers={"Cookie": f"{COOKIE}={ticket}".strip()}) as response:
        assert response.status == (HTTPStatus.OK if which == "of a session" else HTTPStatus.UNAUTHORIZED)


async def test_links_and_sessions_end(start: Start) -> None:
    clock = FakeClock(NOW)
    imgkeep = await start(platform=Platform(clock=clock))
    ticket = make_ticket(imgkeep.token, "link", epoch(LINK_LIFETIME_S))
    async with imgkeep.stranger.get("/login", params={"ticket": ticket}, allow_redirects=False) as response:
        session = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
    statuses = []
    for seconds in (0, SESSION_LIFETIME_S - 1, SESSION_LIFETIME_S):
        clock.now = NOW + timedelta(seconds=seconds)
        async with imgkeep.stranger.get("/api/images", headers=session) as response:
            statuses.append(response.status)
    assert statuses == [200, 200, 401]
    clock.now = NOW + timedelta(seconds=LINK_LIFETIME_S)
    async with imgkeep.stranger.get("/login", params={"ticket": ticket}, allow_redirects=False) as response:
        assert response.status == HTTPStatus.UNAUTHORIZED


PAGES: tuple[tuple[str, dict[str, str], int], ...] = (
    ("GET", {}, 200),
    ("GET", {"Sec-Fetch-Site": "same-origin"}, 200),
    ("GET", {"Sec-Fetch-Site": "none"}, 200),
    ("GET", {"Sec-Fetch-Site": "same-site"}, 401),
    ("GET", {"Sec-Fetch-Site": "cross-site"}, 401),
    ("GET", {"Host": "rebound.example"}, 401),
    ("GET", {"Host": "127.0.0.1.rebound.example"}, 401),
    ("GET", {"Host": ""}, 400),
    ("GET", {"Host": "[::1"}, 400),
    ("GET", {"Host": "evil@127.0.0.1"}, 400),
    ("GET", {"Origin": "http://127.0.0.1:1"}, 401),
    ("GET", {"Origin": "null"}, 401),
    ("GET", {"Origin": "http://["}, 403),
    ("DELETE", {"Origin": "http://HOST"}, 404),
    ("DELETE", {"Origin": "http://HOST", "Sec-Fetch-Site": "same-origin"}, 404),
    ("DELETE", {"Origin": "HTTP://HOST"}, 404),
    ("DELETE", {}, 401),
    ("DELETE", {"Sec-Fetch-Site": "none"}, 401),
    ("DELETE", {"Origin": "https://HOST"}, 401),
    ("DELETE", {"Origin": "http://127.0.0.1"}, 401),
    ("DELETE", {"Origin": "http://127.0.0.1:1"}, 401),
    ("DELETE", {"Origin": "http://localhost:1"}, 401),
    ("DELETE", {"Origin": "http://HOST.evil.example"}, 403),
    ("DELETE", {"Origin": "https://evil.example"}, 401),
    ("DELETE", {"Origin": "null"}, 401),
    ("DELETE", {"Origin": ""}, 403),
    ("DELETE", {"Origin": "http://rebound.example", "Host": "rebound.example"}, 401),
)


async def test_session_counts_for_our_own_page_only(imgkeep: Imgkeep, subtests: pytest.Subtests) -> None:
    here = f"127.0.0.1:{port_of(imgkeep)}"
    session = make_ticket(imgkeep.token, "session", 2**33)
    for method, fields, status in PAGES:
        with subtests.test(method=method, fields=fields):
            sent = {"Host": here, "Cookie": f"{COOKIE}={session}"} | {
                name: value.replace("HOST", here) for name, value in fields.items()
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
            path = f"/api/images/{KEY}" if method == "DELETE" else "/api/images"
            data = f"{method} {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
            assert split(await talk(port_of(imgkeep), data.encode())).status == status


@pytest.mark.parametrize(
    "sections",
    [
        {"server": {"host": "0.0.0.0"}},
        {"server": {"public_url": "https://img.example"}},
        {"server": {"trusted_proxies": ["127.0.0.1/32"]}},
    ],
    ids=str,
)
async def test_no_browser_logs_in_where_others_can_reach_us(start: Start, sections: dict[str, Any]) -> None:
    imgkeep = await start(**sections)
    ticket = make_ticket(imgkeep.token, "link", 2**33)
    async with imgkeep.stranger.get("/login", params={"ticket": ticket}, allow_redirects=False) as response:
        assert (response.status, "Set-Cookie" in response.headers) == (HTTPStatus.UNAUTHORIZED, False)
    session = {"Cookie": f"{COOKIE}={make_ticket(imgkeep.token, 'session', 2**33)}"}
    async with imgkeep.stranger.get("/api/images", headers=session) as response:
        assert response.status == HTTPStatus.UNAUTHORIZED
    async with imgkeep.stranger.get("/api/images", headers={"Authorization": f"Bearer {imgkeep.token}"}) as response:
        assert response.status == HTTPStatus.OK


# --- how much strangers can have fetched


@pytest.mark.parametrize(
    ("sections", "limit"),
    [
        ({}, 0),
        ({"server": {"host": "0.0.0.0"}}, config.EXPOSED_FILL_BYTES_PER_DAY),
        ({"server": {"public_url": "https://img.example"}}, config.EXPOSED_FILL_BYTES_PER_DAY),
        ({"server": {"trusted_proxies": ["127.0.0.1/32"]}}, config.EXPOSED_FILL_BYTES_PER_DAY),
        ({"server": {"host": "::"}, "limits": {"fill_bytes_per_day": 0}}, 0),
        ({"server": {"host": "::"}, "limits": {"fill_bytes_per_day": 5}}, 5),
        ({"server": {"host": "::"}, "security": {"signature": "misses", "signing_keys": ["k" * 16]}}, 0),
        ({"server": {"host": "::", "workers": 4}}, config.EXPOSED_FILL_BYTES_PER_DAY),
    ],
    ids=str,
)
def test_open_server_has_a_limit_of_bytes(sections: dict[str, Any], limit: int) -> None:
    assert config.load(sections, {}).share().fill_bytes_per_day == limit


@pytest.mark.parametrize(
    "server",
    [{"host": "0.0.0.0"}, {"public_url": "https://img.example"}, {"trusted_proxies": ["127.0.0.1/32"]}],
    ids=str,
)
def test_open_server_fetches_from_known_hosts_only(server: dict[str, Any]) -> None:
    read = config.load({"server": server}, {})
    assert "*" not in read.hosts_allowed(read.read_provider_rules())


async def test_open_server_stops_at_its_bytes(
    start: Start, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.schema, "EXPOSED_FILL_BYTES_PER_DAY", len(make_image()) + 1)
    imgkeep = await start(server={"trusted_proxies": ["127.0.0.1/32"]})
    statuses = []
    for n in range(4):
        response = await imgkeep.img(origin.gives(f"/{n}.png", make_image()), headers={"X-Forwarded-For": "192.0.2.1"})
        await response.read()
        statuses.append(response.status)
    assert statuses == [200, 200, 429, 429]
    assert len(origin.seen) == 2
