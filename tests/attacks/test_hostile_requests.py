"""Requests that are malformed, or that a page of another site makes a browser here send."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from imgkeep.bootstrap.server import SERVICES
from imgkeep.config import ConfigError, load, read_database_url
from imgkeep.core.records import Backlog
from tests.support.image_requests import fills_done
from tests.support.images import make_image
from tests.support.program import ROOT, run_here
from tests.support.raw_http import Answer, port_of, split, talk, target_of
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = make_image("png")

HOST = "Host: 127.0.0.1"

# Whatever a field that we read can be, and should not be.
VALUES = [
    *("", " ", "\t", ",", ";", ":", "=", '"', "'", "/", "\\", "%", "%zz", "*", "-", "null", "\xff", "\x80\xfe", "\x7f"),
    *("[", "]", "[]", "http://[", "http://[::1", "http://]", "http://a:b", "http://a:99999999", "://", "http:///"),
    *("http://\xff", "http://a\u2100.example".encode().decode("latin-1"), "//", "javascript:", "http://[fe80::1%25x]"),
    *("bytes=", "bytes=-", "bytes=1-0", "bytes=--1", "bytes=0-0,", "bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 18),
    *('W/"', '"\xff', "W/", '"a" "b"', "," * 4000, '"' * 4000, "for=", 'for="', 'for="[', "for=[::", "for=_x, for="),
    *(
        "1.1",
        "1.1 ",
        " imgkeep",
        "imgkeep;",
        "Bearer",
        "Bearer ",
        "Bearer \xff",
        "Basic Og==",
        "Bearer a b",
        "A" * 8000,
    ),
    *(
        "text/html; charset=",
        "text/html; charset=\xff",
        'text/html; charset="',
        "text/html; charset=idna",
        "/",
        "a/b/c",
    ),
    *(
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\xff",
        "application/json;",
    ),
    *("gzip", "identity, gzip", "-1", "1e9", "0x10", "9" * 30, "Thu, 99 Foo 9999 99:99:99 GMT", "text/event-stream"),
]

FIELDS = [
    *("Authorization", "Origin", "Sec-Fetch-Site", "Host", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host"),
    *("X-Forwarded-Proto", "X-Real-IP", "Via", "CDN-Loop", "If-None-Match", "If-Range", "Range", "Content-Type"),
    *("Content-Encoding", "Content-Length", "Transfer-Encoding", "Expect", "Connection", "Upgrade", "Accept"),
    *("Last-Event-ID", "Cookie", "TE", "Trailer", "Keep-Alive", "Sec-Fetch-Dest", "Access-Control-Request-Headers"),
]
"""All that is read, by us or by what stands in front of us."""

READ_IN_CODE = re.compile(r"(?:headers\.get(?:all)?\(|field\(|_members\(headers, )\s*\"([A-Z][\w-]+)\"")


def test_every_field_that_is_read_is_attacked() -> None:
    files = [
        *(ROOT / "proxy" / "imgkeep" / "web").rglob("*.py"),
        ROOT / "proxy" / "imgkeep" / "core" / "http_headers.py",
    ]
    # What our own workers and origins send is no client's.
    ours = {"Location", "Content-Range", "Retry-After", "Content-Disposition", "Content-Transfer-Encoding"}
    read = {name for file in files for name in READ_IN_CODE.findall(file.read_text())} - ours
    assert {"Host", "Origin", "If-None-Match", "Range", "Authorization", "Via"} <= read
    assert read - set(FIELDS) - {"Server", "Connection", "Allow", "Content-Type", "Content-Length"} == set()


def requests(target: str) -> list[tuple[str, str]]:
    """Return method and target of the requests into which odd fields are put."""
    return [
        ("GET", target),
        ("GET", "/images/" + "a" * 64 + ".png"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/api/inspect?src=https://a.example/a.png"),
        ("GET", "/api/images"),
        ("GET", "/api/jobs/1/events"),
        ("GET", "/openapi.json"),
        ("POST", "/api/save-image"),
        ("POST", "/api/save-images"),
        ("POST", "/api/rewrite"),
        ("DELETE", "/api/images?src=https://a.example/a.png"),
    ]


async def kept_at(imgkeep: Imgkeep, link: str) -> str:
    """Have an image stored, and its responses cached; return its permanent URL."""
    await imgkeep.client.get(link)
    await fills_done(imgkeep)
    permanent: str = (await imgkeep.client.get(link)).headers["Content-Location"]
    for target in (link, permanent):
        assert await (await imgkeep.client.get(target)).read() == IMAGE
    return permanent


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", data)]


@pytest.mark.parametrize("has_tokens", [False, True], ids=["open", "tokens and proxies"])
async def test_no_field_causes_a_server_error(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests, *, has_tokens: bool
) -> None:
    # Half of them meet a server that has tokens and believes its proxies.
    settings: dict[str, Any] = {}
    if has_tokens:
        settings = {"security": {"api_tokens": ["t" * 43]}, "server": {"trusted_proxies": ["127.0.0.0/8"]}}
    imgkeep = await start(**settings)
    target = target_of(origin.gives("/a.png", IMAGE))
    for field in FIELDS[has_tokens::2]:
        with subtests.test(field):
            caplog.clear()
            await imgkeep.client.get(target)
            await send_values(imgkeep, field, requests(target))
            assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def send_values(imgkeep: Imgkeep, field: str, asked: list[tuple[str, str]]) -> None:
    """Send each value in a field, with all requests in turn and with those for images."""
    for number, value in enumerate(VALUES):
        for method, path in (asked[number % len(asked)], asked[number % 3]):
            lines = [HOST] if field != "Host" else []
            head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, f"{field}: {value}", "Connection: close", "", ""])
            found = statuses(await talk(port_of(imgkeep), head.encode("latin-1")))
            assert found, (method, path, value)
            assert all(status < 500 for status in found), (method, path, value, found)


BAD_HOSTS = [
    pytest.param([], id="none"),
    pytest.param([HOST, HOST], id="two"),
    pytest.param([HOST, "host: evil.example"], id="two names"),
    *(
        pytest.param([f"Host: {value}"], id=f"{value!r}")
        for value in (
            "",
            "a b",
            "a/b",
            "user@127.0.0.1",
            "[::1",
            "127.0.0.1:x",
            "127.0.0.1:80:80",
            "\xff",
            "a\tb",
            "<a>",
        )
    ),
]


@pytest.mark.parametrize("hosts", BAD_HOSTS)
async def test_invalid_host_is_400_with_and_without_the_fast_path(
    start: Start, origin: FakeOrigin, hosts: list[str]
) -> None:
    imgkeep = await start()
    link = target_of(origin.gives("/a.png", IMAGE))
    permanent = await kept_at(imgkeep, link)
    fetched = len(origin.seen)
    # The first is a plain request with a cached response; a body, a condition or another path make it aiohttp's.
    for target, fields in (
        (link, []),
        (permanent, []),
        (link, ["Range: bytes=0-1"]),
        (link, ["Content-Length: 0"]),
        (target_of(origin.gives("/b.png", IMAGE)), []),
        ("/healthz", []),
        ("/api/images", []),
        ("/nothing", []),
    ):
        head = "\r\n".join([f"GET {target} HTTP/1.1", *hosts, *fields, "Connection: close", "", ""])
        plain = head.replace("Connection: close\r\n", "").encode("latin-1")
        for data in (
            head.encode("latin-1"),
            plain + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        ):
            answer = await talk(port_of(imgkeep), data)
            assert statuses(answer)[0] == 400
            assert IMAGE not in answer
    assert len(origin.seen) == fetched


async def test_http_1_0_needs_no_host(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = target_of(origin.gives("/a.png", IMAGE))
    assert split(await talk(port_of(imgkeep), f"GET {target} HTTP/1.0\r\n\r\n".encode())).body == IMAGE
    bad = split(await talk(port_of(imgkeep), f"GET {target} HTTP/1.0\r\nHost: a b\r\n\r\n".encode()))
    assert bad.status == 400


async def ask_as(imgkeep: Imgkeep, target: str, host: str, *fields: str, method: str = "GET") -> Answer:
    head = "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "Connection: close", "", ""])
    return split(await talk(port_of(imgkeep), head.encode("latin-1")))


async def talk_as(imgkeep: Imgkeep, target: str, host: str) -> bytes:
    """Ask on the fast path: without a wish to close. The second request ends the connection."""
    plain = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    last = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    return await talk(port_of(imgkeep), (plain + last).encode())


FOREIGN = [
    "attacker.example",
    "attacker.example:8080",
    "127.0.0.1.attacker.example",
    "127.0.0.2",
    "[::2]",
    "localhost.a",
]


@pytest.mark.parametrize("host", FOREIGN)
async def test_rebound_name_shows_and_fetches_nothing(start: Start, origin: FakeOrigin, host: str) -> None:
    imgkeep = await start(legacy=[{"mount": "old"}])
    link = target_of(origin.gives("/a.png", IMAGE))
    new = target_of(origin.gives("/new.png", IMAGE))
    permanent = await kept_at(imgkeep, link)
    fetched = len(origin.seen)
    for target in (link, permanent, new, "/old/a.png", "/images/" + "a" * 64 + ".png", "/metrics"):
        for fields in ([], ["Range: bytes=0-1"], ["If-None-Match: *"], ["Cookie: a=b"]):
            for method in ("GET", "HEAD"):
                answer = await ask_as(imgkeep, target, host, *fields, method=method)
                assert answer.status == 403, (target, fields)
                if method == "GET":
                    problem = json.loads(answer.body)
                    assert problem["code"] == "forbidden"
                    assert "server.public_url" in problem["detail"]
                    assert "server.trusted_proxies" in problem["detail"]
        data = await talk_as(imgkeep, target, host)
        assert statuses(data)[0] == 403
        assert IMAGE not in data
    assert len(origin.seen) == fetched


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"])
async def test_names_of_this_machine_show_images(imgkeep: Imgkeep, origin: FakeOrigin, host: str) -> None:
    target = target_of(origin.gives("/a.png", IMAGE))
    for _ in range(3):
        assert (await ask_as(imgkeep, target, host)).body == IMAGE
        assert IMAGE in await talk_as(imgkeep, target, host)
    assert len(origin.seen) == 1


async def test_connection_may_not_change_to_a_foreign_host(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = target_of(origin.gives("/a.png", IMAGE))
    await imgkeep.client.get(target)
    plain = f"GET {target} HTTP/1.1\r\nHost: {{}}\r\n\r\n"
    data = "".join(plain.format(host) for host in ("localhost", "attacker.example", "localhost"))
    answers = await talk(port_of(imgkeep), data.encode() + b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert statuses(answers) == [200, 403, 200, 404]
    assert answers.count(IMAGE) == 2


@pytest.mark.parametrize(
    "server", [{"public_url": "https://img.example.com"}, {"trusted_proxies": ["127.0.0.1/32"]}], ids=["url", "proxies"]
)
async def test_behind_a_proxy_any_name_shows_images(start: Start, origin: FakeOrigin, server: dict[str, Any]) -> None:
    imgkeep = await start(server=server)
    target = target_of(origin.gives("/a.png", IMAGE))
    for _ in range(3):
        assert (await ask_as(imgkeep, target, "img.example.com")).body == IMAGE


@pytest.mark.parametrize("value", ["http://[", "http://]", "http://a b", "http://a:x", "nonsense", "http://\xff"])
async def test_malformed_origin_is_403(imgkeep: Imgkeep, value: str) -> None:
    answer = await ask_as(imgkeep, "/api/images", "localhost", f"Origin: {value}")
    assert (answer.status, json.loads(answer.body)["code"]) == (403, "forbidden")


SECRET = "SECRETOFTHEREQUEST"
MALFORMED = [
    f"GET /{SECRET} HTTP/9.9\r\nHost: a\r\n\r\n",
    f"GET /{SECRET} HTTP/1.1\r\nHost: a\r\n{SECRET}\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: a\r\n{SECRET} : b\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: a\r\nX: {SECRET}\x00\r\n\r\n",
    f"{SECRET}\r\n\r\n",
    f"G(T /{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET /{SECRET} HTTP/1.1\r\nHost: a\r\nContent-Length: {SECRET}\r\n\r\n",
    f"GET /{SECRET} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    f"GET /{SECRET} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {SECRET}\r\nContent-Length: 1\r\n\r\n",
    f"GET /{SECRET}{'a' * 50_000} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: a\r\nX: {SECRET}{'a' * 50_000}\r\n\r\n",
    f"GET /{SECRET} HTTP/1.1\r\nHost: a\r\nHost: {SECRET}\r\n\r\n",
    f"GET /{SECRET} HTTP/1.1\r\nHost: {SECRET} a\r\nConnection: close\r\n\r\n",
    f"GET /healthz HTTP/1.1\r\n{HOST}\r\nExpect: {SECRET}\xff\r\nConnection: close\r\n\r\n",
    f"GET /nothing HTTP/1.1\r\n{HOST}\r\nExpect: {SECRET}\r\nConnection: close\r\n\r\n",
    f"GET <{SECRET}> HTTP/1.1\r\nHost: a\r\n\r\n",
    f"GET http://[{SECRET} HTTP/1.1\r\nHost: a\r\n\r\n",
    f"\x16\x03\x01\x02\x00\x01{SECRET}\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_request_gets_a_problem_without_echo(
    imgkeep: Imgkeep, data: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    answer = split(await talk(port_of(imgkeep), data.encode("latin-1")))
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["server"] == "imgkeep"
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["type"] == f"urn:imgkeep:problem:{problem['code']}"
    assert SECRET not in answer.body.decode()
    assert SECRET not in str(answer.headers)
    ours = [record for record in caplog.records if record.name.startswith(("imgkeep", "aiohttp"))]
    assert SECRET not in "".join(f"{record.getMessage()} {record.exc_text} {vars(record)}" for record in ours)
    assert not [record for record in ours if record.levelname == "ERROR"]


LISTS = [("Via", ","), ("CDN-Loop", "a b,"), ("If-None-Match", '"a",'), ("Cookie", "a=b;"), ("X", "x")]


@pytest.mark.parametrize(("name", "member"), LISTS, ids=lambda each: each)
async def test_large_fields_are_refused_unread(imgkeep: Imgkeep, origin: FakeOrigin, name: str, member: str) -> None:
    target = target_of(origin.gives("/a.png", IMAGE))
    line = f"{name}: {member * (16_000 // len(member))}\r\n"
    for lines, status in ((1, 200), (3, 431), (100, 431)):
        for asked in (target, "/metrics", "/nothing"):
            head = f"GET {asked} HTTP/1.1\r\n{HOST}\r\nIf-Range: a\r\nConnection: close\r\n{line * lines}\r\n"
            answer = split(await talk(port_of(imgkeep), head.encode()))
            if status == 431:
                assert (answer.status, json.loads(answer.body)["code"]) == (431, "request_too_large")
            else:
                assert answer.status in {200, 404}
    assert len(origin.seen) == 1


async def test_clients_without_a_token_get_states_and_no_reasons(start: Start) -> None:
    token = "t" * 43
    imgkeep = await start(security={"api_tokens": [token]})
    app = imgkeep.client.app
    assert app is not None
    health = app[SERVICES].health
    for part in ("store", "database", "disk", "fallback"):
        health.note_fault(part, "s3.internal.example:9000/bucket-name is away: /var/lib/imgkeep")
    health.backlog = lambda: Backlog(3, None, "bucket-name")
    strangers: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Origin": "http://["},
    ]
    for headers in strangers:
        async with imgkeep.stranger.get("/readyz", headers=headers) as answer:
            reply = await answer.json()
            assert answer.status == 200
            assert reply.pop("status") == "degraded"
            assert reply == {part: {"status": "failing"} for part in ("store", "database", "disk", "fallback")}
    async with imgkeep.client.get("/readyz", headers={"Authorization": f"Bearer {token}"}) as answer:
        reply = await answer.json()
        assert "bucket-name" in reply["store"]["reason"]
        assert reply["fallback"]["waiting"] == 3


MALFORMED_DATABASES = [
    *(
        "",
        "sqlite",
        "sqlite:",
        "sqlite://",
        "sqlite:///x",
        "sqlite::memory:",
        "sqlite:a\0b",
        "sqlite:a\nb",
        "sqlite:data/",
    ),
    *("sqlite:data/x.db?mode=memory&uri=true", "sqlite:x#y", "mysql://u:PASSWORD@h/db", "data/imgkeep.db", "://", ":"),
    *(
        "postgresql:",
        "postgresql://",
        "postgresql:///db",
        "postgresql://h",
        "postgresql://h/",
        "postgresql://u:PASSWORD@h/",
    ),
    *(
        "postgresql://h:x/db",
        "postgresql://h:99999/db",
        "postgresql://h:0/db",
        "postgresql://h:-1/db",
        "postgresql://[::1/db",
    ),
    *(
        "postgresql://u:PASS@WORD@h/db",
        "postgresql://u:PASS/WORD@h/db",
        "postgresql://u:PASS#WORD@h/db",
        "postgresql://@/db",
    ),
    *(
        "postgresql://h/a/b",
        "postgresql://h/db?bogus=1",
        "postgresql://h/db?x",
        "postgresql://h h/db",
        "postgresql://h/db\n",
    ),
    *(
        "sqlite:a%00b",
        "sqlite:%3Amemory%3A",
        "sqlite:a%3Fmode=memory",
        "postgresql://h/d%00b",
        "postgresql://u:%00@h/d",
    ),
    *("postgresql+asyncpg://h/db", "postgresql://[zz]/db", "postgresql://h\u2100/db"),
]


@table("url", MALFORMED_DATABASES)
def test_malformed_database_url_is_an_error_of_configuration(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        load({"database": {"url": url}}, {})
    assert str(error.value).startswith("database.url: ")
    assert "PASS" not in str(error.value).replace("USER:PASSWORD", "")


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite:data/imgkeep.db", "sqlite:/var/lib/imgkeep/a b.db", "sqlite:x", "postgres://h/db"),
        *(
            "postgresql://u:p%40ss@db.example:5432/images?sslmode=require&connect_timeout=5",
            "postgresql://[::1]:5432/db",
        ),
    ],
)
def test_valid_database_url_is_accepted(url: str) -> None:
    name = read_database_url(load({"database": {"url": url}}, {}).database.url)
    assert sa.make_url(name).database


@pytest.mark.parametrize("command", ["serve"])
async def test_malformed_database_url_ends_with_status_2(tmp_path: Path, command: str) -> None:
    status, _, err = await run_here(tmp_path, command, database__url="postgresql://u:HUSH@[::1/db")
    assert status == 2
    assert "database.url" in err
    assert "HUSH" not in err
    assert "Traceback" not in err
