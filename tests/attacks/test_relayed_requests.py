"""
One request, two readers: the worker that has the client judges its request once, and no framing of the client reaches
another worker.

The attacks need a server of two real workers. A tap on the socket of the one that answers the API tells what the other
one made of a request, byte for byte.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from contextlib import AsyncExitStack, suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from imgkeep.bootstrap.server import build
from imgkeep.cluster.progress import read_fill, write_failure
from imgkeep.core import errors
from imgkeep.core.errors import ImgkeepError
from imgkeep.images.peer_fill import FillFailure
from imgkeep.web.admission import API_PREFIX
from tests.support.cluster import Line, clustered, hear, leader, line_to, others, port_of, workers
from tests.support.images import make_image, png_of
from tests.support.origins import gated_body
from tests.support.raw_http import port_of as port_of_one
from tests.support.raw_http import request, split, talk, target_of
from tests.support.server import Server, configuration
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiohttp.test_utils import TestClient
    from pytest_aiohttp.plugin import AiohttpClient

    from tests.support.cluster import Cluster, Worker
    from tests.support.origins import FakeOrigin
    from tests.support.raw_http import Answer
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

TOKEN: Final = "a-token-for-tests-of-32-characters"
WITH_TOKEN: Final = f"Authorization: Bearer {TOKEN}"
PUBLIC: Final = frozenset(
    {
        *("/img", "/images/{name}", "/imgkeep.js", "/imgkeep.d.ts", "/openapi.json", "/api", "/login"),
        *("/healthz", "/readyz", "/metrics", "/", "/docs", "/docs/{name}"),
    }
)
"""Routes that need no access."""
CANARY: Final = "canary-of-the-client"
RAW: Final = ("utf-8", "surrogateescape")
LINKS: Final = json.dumps({"urls": []}).encode()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers whose API needs a token."""
    with clustered(tmp_path_factory.mktemp("tokens") / "data", security__api_tokens=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def tokenless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers whose API needs no token from programs of this machine."""
    with clustered(tmp_path_factory.mktemp("tokenless") / "data") as running:
        yield running


async def img(program: Cluster, link: str) -> Answer:
    return split(await talk(port_of(program), get(target_of(link), "Connection: close"), timeout_s=30))


def post(path: str, body: bytes, *fields: str) -> bytes:
    """Return a request with a body, its length as it is unless a field says otherwise."""
    framing = [] if any(it.lower().startswith(("content-length", "transfer-enc")) for it in fields) else [len(body)]
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *fields, *(f"Content-Length: {size}" for size in framing)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode("utf-8", "surrogateescape")


def deflate(data: bytes) -> bytes:
    return zlib.compress(data)


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def named_gzip(data: bytes, name_bytes: int = 500) -> bytes:
    """Return a file that is longer than what it decodes to, as a name stands in it (RFC 1952, 2.3)."""
    packed = gzip.compress(data)
    return packed[:3] + b"\x08" + packed[4:10] + b"n" * name_bytes + b"\0" + packed[10:]


SWALLOWS: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\0\xff\xff\0\0"
"""The beginning of a gzip file, and of a stored block (RFC 1951, 3.2.4): whatever follows is good content of it."""
CODINGS: Final[tuple[tuple[str, Callable[[bytes], bytes]], ...]] = (
    ("gzip", gzip.compress),
    ("gzip", named_gzip),
    ("GZip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", deflate),
    ("deflate", bare_deflate),
    ("br", lambda data: b"\x0b\x02\x80" + data[:4] + b"\x03"),
    ("zstd", lambda data: b"\x28\xb5\x2f\xfd\x20" + bytes([min(len(data), 255)]) + data),
    ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    ("identity, gzip", gzip.compress),
    ("gzip, identity", gzip.compress),
    ("nonsense", bytes),
    ("\udcff", bytes),
    ("gzip\udca0", gzip.compress),
)
SMUGGLED: Final = b"POST /notices HTTP/1.1\r\nHost: peer\r\nContent-Length: %d\r\n\r\n%b"
HARMLESS: Final = b'{"urls": []}'


def notice(digest: str) -> bytes:
    """Return what would have a worker block a digest for good, as a request to its socket."""
    body = msgspec.msgpack.encode({"blocked": [digest], "changed": [], "copies": {}})
    return SMUGGLED % (len(body), body)


async def image_of(program: Cluster, origin: FakeOrigin) -> tuple[str, str, str]:
    """Store an image; return its link, key and digest."""
    link = origin.gives("/a.png", make_image())
    assert (await img(program, link)).status == 200
    place = (await img(program, link)).headers["content-location"]
    digest = place.rpartition("/")[2].partition(".")[0]
    return link, await key_of(program, link), digest


async def key_of(program: Cluster, link: str) -> str:
    asked = get(f"/api/inspect?src={quote(link, safe='')}", WITH_TOKEN, "Connection: close")
    key = json.loads(split(await talk(port_of(program), asked)).body)["key"]
    assert isinstance(key, str)
    return key


# --- bodies


async def test_content_coding_smuggles_no_request(program: Cluster, origin: FakeOrigin) -> None:
    link, key, digest = await image_of(program, origin)
    # What is decoded is shorter than, as long as, or longer than what is declared; and once it is a request.
    bodies = [HARMLESS, HARMLESS.ljust(200), HARMLESS.ljust(70_000), notice(digest), notice(digest) * 40]
    (front,) = others(program)
    asked = 0
    tap = program.tap(leader(program))
    async with Line(program, front) as line:
        for fields, status in (((WITH_TOKEN, "Content-Type: application/json"), 415), ((), 401)):
            for (coding, encode), body, padding in product(CODINGS, bodies, (b"", notice(digest))):
                asked += 1
                sent = post("/api/save-images", encode(body) + padding, f"Content-Encoding: {coding}", *fields)
                # The head of the next request counts as the rest of the body for a reader that goes by one length.
                refused = await line.ask(sent + get(f"/api/images/{key}", WITH_TOKEN))
                assert refused.status == status, (coding, len(body))
                assert refused.headers["content-type"] == "application/problem+json"
                assert refused.headers.get("accept-encoding") == ("identity" if status == 415 else None)
                assert json.loads((await line.hear()).body)["digest"] == digest
        # What was refused never came to the other worker; each request behind it did, as itself.
        assert [message.start for row in tap.rows() for message in row] == [
            b"GET /api/images/%b HTTP/1.1" % key.encode()
        ] * asked
    assert {(await img(program, link)).status for _ in range(10)} == {200}


async def test_relayed_body_is_framed_anew_on_its_own_connection(program: Cluster, origin: FakeOrigin) -> None:
    _, key, digest = await image_of(program, origin)
    bodies = [HARMLESS, HARMLESS.ljust(200), notice(digest), b"0\r\n\r\n" + notice(digest), HARMLESS.ljust(70_000)]
    (front,) = others(program)
    tap = program.tap(leader(program))
    async with Line(program, front) as line:
        for body, coding in product(bodies, ("identity", "", "Identity, identity")):
            parts = [it for it in (body[: len(body) // 2], body[len(body) // 2 :]) if it]
            chunks = b"".join(b"%x;%b=1\r\n%b\r\n" % (len(it), CANARY.encode(), it) for it in parts)
            head = (WITH_TOKEN, "Content-Type: application/json", f"Content-Encoding: {coding}", f"X-Own: {CANARY}")
            whole = post("/api/rewrite", body, *head)
            chunked = post("/api/rewrite", chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked", *head)
            for sent in (whole, chunked):
                assert (await line.ask(sent + get(f"/api/images/{key}", WITH_TOKEN))).status == 400
                assert json.loads((await line.hear()).body)["digest"] == digest
    rows = tap.rows()
    assert sorted(message.body for row in rows for message in row if message.start.startswith(b"POST")) == sorted(
        body for body in bodies for _ in range(6)
    )
    assert {len(row) for row in rows if any(message.body for message in row)} == {1}
    assert {name.lower() for row in rows for message in row for name, _ in message.fields} == {
        *(b"host", b"imgkeep-peer-secret", b"imgkeep-admission", b"content-type", b"transfer-encoding", b"connection"),
    }
    assert CANARY.encode() not in b"".join(bytes(wire.asked) for wire in tap.wires)


async def test_cut_request_body_has_no_effect(program: Cluster, origin: FakeOrigin) -> None:
    body = json.dumps({"urls": [origin.gives("/b.png", make_image())]}).encode()
    head = (WITH_TOKEN, "Content-Type: application/json")
    cut = [
        post("/api/save-images", body, f"Content-Length: {len(body) + 1}", *head),
        post("/api/save-images", b"%x\r\n%b\r\n" % (len(body), body), "Transfer-Encoding: chunked", *head),
        post("/api/save-images", b"%x\r\n%b" % (len(body) + 9, body), "Transfer-Encoding: chunked", *head),
        post("/api/save-images", b"%x\r\n%b\r\nzz\r\n" % (len(body), body), "Transfer-Encoding: chunked", *head),
    ]
    (front,) = others(program)
    tap = program.tap(leader(program))
    for number, sent in enumerate(cut, 1):
        async with line_to(program, front) as (reader, writer):
            writer.write(sent)
            if not sent.endswith(b"zz\r\n"):  # of which nothing need be passed on
                await until(lambda: sum(body in wire.asked for wire in tap.wires) == number)  # noqa: B023 - at once
            writer.write_eof()
            answer = await reader.read()
            assert answer.partition(b" ")[2][:3] in {b"", b"400"}
    posted = [wire for wire in tap.wires if wire.asked.startswith(b"POST")]
    assert len(posted) >= 3
    await until(lambda: all(wire.is_over for wire in posted))
    assert not any(wire.asked.endswith(b"\r\n0\r\n\r\n") for wire in posted), "none of them was ended"
    assert not any(wire.answered.startswith(b"HTTP/1.1 2") for wire in posted)
    # The next job is done, and so would those before it be.
    whole = json.dumps({"urls": [origin.gives("/c.png", make_image(seed=1))], "wait": True}).encode()
    sent = post("/api/save-images", whole, "Connection: close", *head)
    assert json.loads(split(await talk(port_of(program), sent)).body)["saved"] == 1
    assert (origin.asked("/b.png"), origin.asked("/c.png")) == (0, 1)


@pytest.mark.parametrize("kind", ["program", "tokenless"])
async def test_request_within_a_body_removes_nothing(
    request: pytest.FixtureRequest, origin: FakeOrigin, kind: str
) -> None:
    """A body that decodes to less than it is long, and behind it one that is a request to the socket of a worker."""
    program: Cluster = request.getfixturevalue(kind)
    link = origin.gives("/a.png", make_image())
    assert (await img(program, link)).status == 200
    place = (await img(program, link)).headers["content-location"]
    digest = place.rpartition("/")[2].partition(".")[0]
    stranger = "X-Forwarded-For: \udcff"  # as a proxy in front passes it on
    (front,) = others(program)
    tap = program.tap(leader(program))
    async with Line(program, front) as line:
        for path, filler in product(("/api/save-images", "/api/save-image", "/api/rewrite"), (0, 1, 300)):
            # The first body ends, by its declared length, in the second one: just before what is a request.
            second = post("/api/save-images", b"x" * filler + notice(digest))
            length = len(SWALLOWS) + second.index(b"POST /notices")
            packed = named_gzip(SWALLOWS, length - len(named_gzip(SWALLOWS, 0)))
            assert len(packed) == length
            first = post(path, packed, "Content-Encoding: gzip", stranger)
            answer = await line.ask(first + second.replace(b"\r\n", f"\r\n{stranger}\r\n".encode(*RAW), 1))
            assert [answer.status, (await line.hear()).status] == [401, 401]
    assert tap.requests() == [], "of a stranger's requests nothing comes to another worker"
    assert {(await img(program, link)).status for _ in range(10)} == {200}


# --- access


async def test_access_is_checked_before_the_body(start: Start) -> None:
    imgkeep = await start(security={"api_tokens": [TOKEN]})
    late = ("Expect: 100-continue", "Content-Type: application/json")
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of_one(imgkeep))
    try:
        for fields, status in (((), 401), ((WITH_TOKEN, "Content-Encoding: br"), 415)):
            head = post("/api/save-images", LINKS, *late, *fields)[: -len(LINKS)]
            writer.write(head)
            assert (await hear(reader)).status == status
            writer.write(LINKS)  # a client that does not wait has sent it meanwhile
        writer.write(post("/api/rewrite", LINKS, *late, WITH_TOKEN)[: -len(LINKS)])
        assert (await hear(reader)).status == 100
        writer.write(LINKS)
        assert (await hear(reader)).status == 400
    finally:
        writer.close()


async def test_route_is_listed_as_public_or_needs_access(start: Start) -> None:
    imgkeep = await start(security={"api_tokens": [TOKEN]})
    app = imgkeep.client.app
    assert app is not None
    shut = 0
    for route in app.router.routes():
        assert route.resource is not None
        path = re.sub(r"\{[^}]*\}", "0" * 64, route.resource.canonical)
        sent = post(path, b"any bytes", "Connection: close").replace(b"POST", route.method.encode(), 1)
        status = split(await talk(port_of_one(imgkeep), sent)).status
        if route.resource.canonical in PUBLIC:
            assert status != 401 or path == "/login"  # which judges its own link
        else:
            assert route.resource.canonical.startswith(API_PREFIX)
            assert status == 401
            shut += 1
    assert shut >= 10


async def test_api_handler_without_admission_fails(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    app = build(configuration(tmp_path / "data", security={"api_tokens": [TOKEN]}))
    app.middlewares.pop()  # the judgement is the last of them
    client: TestClient[web.Request, None] = await aiohttp_client(Server(app))
    for route in app.router.routes():
        assert route.resource is not None
        path = re.sub(r"\{[^}]*\}", "0" * 64, route.resource.canonical)
        if path.startswith(API_PREFIX):
            answer = await client.request(route.method, path, json={}, headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status == 500, path


@pytest.mark.parametrize(
    "target", ["/img?src=http%3A%2F%2Fa.example%2Fa.png", "/healthz", "/api", "/images/x", "/metrics"]
)
async def test_content_coding_is_refused_on_every_route(imgkeep: Imgkeep, target: str) -> None:
    bomb = gzip.compress(bytes(1_000_000))
    for fields in (("Content-Encoding: gzip",), ("Content-Encoding: gzip", f"Content-Length: {len(bomb)}")):
        with_body = len(fields) > 1
        sent = get(target, *fields, "Connection: close") + (bomb if with_body else b"")
        answer = split(await talk(port_of_one(imgkeep), sent))
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
        assert json.loads(answer.body)["code"] == "unsupported_media_type"


async def test_no_request_body_is_decompressed(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Bytes come to a handler as they were sent, whatever they are said to be coded in."""
    app = build(configuration(tmp_path / "data"))
    read: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        read.append(await request.content.read())
        return web.Response()

    app.middlewares.clear()
    app.router.add_route("*", "/echo", handler)
    bomb = gzip.compress(bytes(1_000_000))
    client: TestClient[web.Request, None] = await aiohttp_client(Server(app))
    for method in ("GET", "POST", "DELETE", "HEAD"):
        for coding in ("gzip", "deflate", "br", "zstd"):
            sent = post("/echo", bomb, f"Content-Encoding: {coding}", "Connection: close")
            await talk(client.port or 0, sent.replace(b"POST", method.encode(), 1))
    assert read == [bomb] * 16


# --- fields


FIELDS: Final = ("Host", "Origin", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")
ODD_VALUES: Final = (
    *("", " ", "\udcff", "\udca0", "\udc85", "\u00a0", "\u0661.0.0.1", "localhost\udcff", "127.0.0.1\udca0"),
    *("localhost\r\n folded", "\r\n\tlocalhost", "none", "same-origin", "null", "http://[", "a, b", "a\tb"),
)
ODD_LINES: Final = (": empty", " : blank", "X-Forwarded-For : a", "\udcffX-Forwarded-For: a", "X\udcff: a", ":", "Via")


def odd_heads() -> list[tuple[str, ...]]:
    """Return fields, to be sent with a host of our own where they name none."""
    named = [(f"{name}: {value}",) for name in (*FIELDS, "Via", "Sec-Fetch-Site") for value in ODD_VALUES]
    twice = [
        (f"{name}: {first}", f"{name.upper()}: {second}")
        for name in (*FIELDS, "Sec-Fetch-Site", "Authorization")
        for first, second in (("localhost", "\udcff"), ("\udcff", "localhost"), ("none", "cross-site"))
    ]
    bearer = [
        (f"Authorization: {it}",) for it in ("Bearer \udcff", "Bearer\udca0x", "\udca0Bearer x", "bearer  x\udc85")
    ]
    return [*named, *twice, *bearer, *((line,) for line in ODD_LINES)]


def with_host(fields: tuple[str, ...]) -> tuple[str, ...]:
    named = any(field.lower().startswith("host:") for field in fields)
    return fields if named else ("Host: localhost", *fields)


def odd_request(target: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", *with_host(fields), "", ""]).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("tokens", [TOKEN, ""], ids=["with tokens", "without tokens"])
async def test_odd_fields_mean_the_same_with_workers(request: pytest.FixtureRequest, start: Start, tokens: str) -> None:
    program: Cluster = request.getfixturevalue("program" if tokens else "tokenless")
    one = await start(security={"api_tokens": [tokens] if tokens else []})
    token = (WITH_TOKEN,) if tokens else ()
    heads = [fields if fields[0].startswith("Auth") else (*fields, *token) for fields in odd_heads()]
    judged = []
    for fields in heads:
        answer = split(await talk(port_of_one(one), odd_request("/api/images", *fields, "Connection: close")))
        judged.append((fields, answer.status))
        if not tokens and fields[0].lower().startswith(("forwarded:", "x-forwarded-", "x-real-ip:", "via:")):
            assert answer.status in {400, 401}, fields
    # What the parser refuses ends the connection, and is judged by nothing: a few will do.
    malformed = [it for it in judged if it[1] == 400]
    judged = [it for it in judged if it[1] != 400] + malformed[:3]
    assert len(malformed) > 3
    assert 401 in {status for _, status in judged}
    tap = program.tap(leader(program))
    for worker in workers(program).values():
        async with Line(program, worker) as line:
            for fields, status in judged:
                found = (await line.ask(odd_request("/api/images", *fields))).status
                assert found == status, (worker == leader(program), fields)
    assert len(tap.requests()) == sum(status == 200 for _, status in judged)


async def test_access_check_sees_each_field_as_sent(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Each byte of each field comes to the judgement, under its name and in its place."""
    app = build(configuration(tmp_path / "data"))
    app.middlewares.clear()

    async def handler(request: web.Request) -> web.Response:
        judged = [
            [name.lower(), value.encode("utf-8", "surrogateescape").hex()]
            for name, value in request.headers.items()
            if name != "Connection"
        ]
        return web.json_response(judged)

    app.router.add_get("/echo", handler)
    compared = 0
    client: TestClient[web.Request, None] = await aiohttp_client(Server(app))
    for fields in odd_heads():
        answer = split(await talk(client.port or 0, odd_request("/echo", *fields, "Connection: close")))
        if answer.status == 400:
            continue  # of a head that is malformed nothing is judged
        sent = [it.encode("utf-8", "surrogateescape").partition(b":")[::2] for it in with_host(fields)]
        expected = [[name.decode().lower(), value.strip(b" \t").hex()] for name, value in sent]
        assert json.loads(answer.body) == expected
        compared += 1
    assert compared > 150


async def test_odd_fields_mean_the_same_on_the_fast_path(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    imgkeep = await start(server={"trusted_proxies": ["127.0.0.0/8"]}, security={"api_tokens": [TOKEN]})
    target = target_of(origin.gives("/a.png", make_image()))
    miss = target_of("http://127.0.0.1:1/a.png")
    values = ("203.0.113.9\udca0", "203.0.113.9\udc85", "203.0.113.9\udcff", "\u00a0203.0.113.9", "203.0.113.9, \udcff")
    heads = [(f"{name}: {value}",) for name in ("X-Forwarded-For", "Forwarded") for value in values]
    heads += [(f"Forwarded: for={value}",) for value in values]
    heads += [(f"{name}: {value}",) for name in ("Via", "CDN-Loop") for value in ("1.1 imgkeep\udca0", "imgkeep\udc85")]
    heads += [(f"If-None-Match: {value}",) for value in ("*\udca0", "*\udc85", "\u00a0*")]
    heads += [(f"Range: bytes=0-{value}",) for value in ("9\udca0", "\u0669")]
    assert (await talk(port_of_one(imgkeep), request(target)))[9:12] == b"200"
    with caplog.at_level("INFO", "imgkeep.access"):
        for fields, asked in product(heads, (target, miss)):
            caplog.clear()
            # What names a coding is left to aiohttp.
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of_one(imgkeep))
            writer.write(request(asked, *fields, close=False))
            quick = await hear(reader)
            writer.write(request(asked, *fields, "Content-Encoding: identity", close=False))
            long = await hear(reader)
            writer.close()
            assert quick.status == long.status, fields
            await until(lambda: len(caplog.records) == 2)
            assert len({(it.client, it.outcome) for it in caplog.records}) == 1, fields  # type: ignore[attr-defined]


# --- between workers


def readable_to_others(worker: Worker) -> bytes:
    """Return how a worker was started, which other users of the machine can see in part."""
    return b"".join(Path(f"/proc/{worker.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


async def test_peer_api_needs_the_secret(program: Cluster, origin: FakeOrigin) -> None:
    link, key, digest = await image_of(program, origin)
    (front,) = others(program)
    tap = program.tap(leader(program))
    async with Line(program, front) as line:
        assert (await line.ask(get(f"/api/images/{key}", WITH_TOKEN))).status == 200
    secret = tap.secret().decode()
    assert re.fullmatch("[0-9a-f]{64}", secret)
    socket = leader(program).socket
    admitted = 'Imgkeep-Admission: {"base":"","body_bytes":null}'
    targets = [
        *("GET /metrics", "GET /img?src=x", f"GET /fills/{key}", f"GET /fills/{key}/end", "POST /notices"),
        *("GET /api/images", f"DELETE /api/images/{key}", "POST /api/save-images", "GET /nowhere"),
    ]
    wrong = [
        (),
        ("Imgkeep-Peer-Secret:",),
        (f"Imgkeep-Peer-Secret: {secret[:-1]}",),
        (f"Imgkeep-Peer-Secret: {secret.upper()}x",),
    ]
    wrong += [
        (f"Imgkeep-Peer-Secret: {secret}\udcff",),
        (f"Imgkeep-Peer-Secret: {secret}", f"Imgkeep-Peer-Secret: {secret}"),
    ]
    wrong += [(WITH_TOKEN,), (f"Authorization: Bearer {secret}",)]
    for target, fields in product(targets, wrong):
        sent = post("/", notice(digest), admitted, *fields).replace(b"POST /", target.encode(), 1)
        assert await statuses(socket, sent + get("/metrics", f"Imgkeep-Peer-Secret: {secret}")) == [403], (
            target,
            fields,
        )
    known = f"Imgkeep-Peer-Secret: {secret}"
    # Who knows it is answered, and after a body nothing more, be it read or not.
    follow = get("/metrics", known)
    several = get("/metrics", known) + get(f"/fills/{key}", known) + follow
    assert await statuses(socket, several, number=3) == [200, 204, 200]
    for path, status in (("/notices", 400), ("/nowhere", 404), ("/metrics", 405), ("/api/save-images", 400)):
        assert await statuses(socket, post(path, b"\x01" * 9, known) + follow) == [status], path
    unread = post("/api/rewrite", notice(digest), known, admitted, "Content-Type: text/nonsense")
    assert await statuses(socket, unread + follow) == [415]
    coded = post("/api/save-images", gzip.compress(LINKS), known, admitted, "Content-Encoding: gzip")
    assert await statuses(socket, coded + follow) == [415]
    assert {(await img(program, link)).status for _ in range(10)} == {200}
    # It stands nowhere that others can read.
    assert not any(secret in line for line in program.log)
    assert not any(secret.encode() in readable_to_others(worker) for worker in workers(program).values())
    assert not any(secret.encode() in it.read_bytes() for it in front.folder.rglob("*") if it.is_file())
    answers = b"".join(bytes(wire.answered) for wire in tap.wires)
    assert secret.encode() not in answers


async def statuses(socket: Path, sent: bytes, *, number: int | None = None) -> list[int]:
    """Say something to a worker, and return the statuses of `number` answers, or of all until it closes."""
    reader, writer = await asyncio.open_unix_connection(socket)
    heard = bytearray()
    found: list[int] = []
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                while (number is None or len(found) < number) and (data := await reader.read(65_536)):
                    heard += data
                    found = [int(it) for it in re.findall(rb"HTTP/1\.1 (\d+) ", heard)]
    finally:
        writer.close()
    return found


async def test_follower_sends_a_peer_nothing_of_its_client(program: Cluster, origin: FakeOrigin) -> None:
    body = png_of(400_000)
    gate = asyncio.Event()
    url = origin.on("/a.png", gated_body(body, gate, ahead=100_000))
    # Targets that name the same image, with what a client may put in: another fragment, odd bytes, conditions.
    split_up = "x\udcff\udca0HTTP/1.1"
    first = asyncio.create_task(img(program, url))
    lease = leader(program).folder / "leases" / await key_of(program, url)
    await until(lease.is_symlink)
    holder = workers(program)[str(lease.readlink())]
    (other,) = (it for it in workers(program).values() if it != holder)
    targets = [target_of(url), f"/img?src={url}", f"{target_of(url)}#{CANARY}", f"/img?src={url}#{CANARY}"]
    conditions: list[tuple[str, ...]] = [
        (),
        ("Range: bytes=10-19",),
        (f"Range: bytes=0-9,{CANARY}",),
        (f'If-None-Match: "{CANARY}"', "If-Range: \udcff"),
        (f"Via: 1.1 {CANARY}", f"Cookie: {CANARY}", f"X: {split_up}"),
    ]
    tap = program.tap(holder)
    async with AsyncExitStack() as stack:
        asking = []
        for target, fields in product(targets, conditions):
            reader, writer = await stack.enter_async_context(line_to(program, other))
            writer.write(request(target, *fields))
            asking.append(asyncio.create_task(reader.read()))
        await until(lambda: len(tap.wires) > 0)
        gate.set()
        answers = [split(data) for data in await asyncio.gather(*asking)]
    assert (await first).body == body
    ranged = [fields == ("Range: bytes=10-19",) for _, fields in product(targets, conditions)]
    assert [answer.status for answer in answers] == [206 if it else 200 for it in ranged]
    assert all(answer.body == (body[10:20] if it else body) for answer, it in zip(answers, ranged, strict=True))
    asked = tap.requests()
    assert {message.start for message in asked} == {b"GET /fills/%b?share=file HTTP/1.1" % lease.name.encode()}
    assert {name.lower() for message in asked for name, _ in message.fields} == {b"host", b"imgkeep-peer-secret"}
    assert len(asked) == 1, "one for all who follow"
    assert origin.asked("/a.png") == 1


async def test_api_answers_the_same_through_each_worker(program: Cluster, origin: FakeOrigin) -> None:
    (front,) = others(program)
    here, there = leader(program), front
    boundary = "a boundary"
    large = png_of(200_000)
    form = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%b\r\n--%b--\r\n'
    upload = form % (boundary.encode(), large, boundary.encode())
    as_form = f'Content-Type: multipart/form-data; boundary="{boundary}"'
    link = origin.gives("/d.png", make_image(seed=2))
    page = b'<img src="https://a.example/a.png?X-Amz-Signature=1">'
    many = json.dumps({"urls": [link], "wait": True}).encode()
    requests = [
        ("/api/save-image", upload, as_form),
        ("/api/save-image", json.dumps({"url": link}).encode(), "Content-Type: application/json"),
        ("/api/save-images", many, "Content-Type: application/json; charset=utf-8"),
        ("/api/rewrite?which=all", page * 3000, "Content-Type: text/html; charset=iso-8859-1"),
        ("/api/rewrite", b"# no\xff", "Content-Type: text/markdown"),
    ]
    answers = []
    for worker in (there, here, there):
        async with Line(program, worker) as line:
            answers.append([await line.ask(post(path, body, WITH_TOKEN, kind)) for path, body, kind in requests])
    assert [answer.status for answer in answers[0]] == [201, 201, 200, 200, 200]
    said = [[re.sub(rb'"(id|created|stored_at|\w+_at)":[^,}]+', b"", it.body) for it in row] for row in answers]
    assert said[0] == said[1] == said[2]
    names = {frozenset(answer.headers) for row in answers for answer in row[:3]}
    assert len(names) == 1
    job = json.loads(answers[0][2].body)["id"]
    async with line_to(program, there) as (reader, writer):
        writer.write(get(f"/api/jobs/{job}/events", WITH_TOKEN, "Connection: close"))
        assert b"event: done" in await reader.read()


@pytest.mark.parametrize("kind", ["text\udcff/html", "text/html; charset=\u00fc"])
async def test_odd_content_type_is_refused_by_each_worker(program: Cluster, kind: str) -> None:
    for worker in workers(program).values():
        async with Line(program, worker) as line:
            assert (await line.ask(post("/api/rewrite", b"x", WITH_TOKEN, f"Content-Type: {kind}"))).status == 415


async def test_odd_targets_mean_the_same_to_each_worker(program: Cluster) -> None:
    long = "http://a.example/" + "a" * 7000 + "\u00fc" * 4000
    ends = ("", "#fragment", "?#", "?", "#?src=x", "?src=a#b?c", "?a=1&a=2", "//", "/..", "/%2e%2e/images", ";x", "%00")
    paths = (
        "/api/inspect",
        "/api/images",
        "/api/images/x",
        "/api/jobs/x",
        "//api/images",
        "/%61pi/images",
        "/api/nowhere",
    )
    targets = [f"{path}{end}" for path in paths for end in ends]
    targets += [f"/api/inspect?src={it}" for it in ("http://a.example/%7e\udcff\u00fc", "http://a.example/a b", long)]
    targets += [
        f"{base}{path}" for base in ("http://localhost", "HTTP://x@evil:1") for path in ("", "/api/images?#x", "?/api/")
    ]
    first = leader(program)
    (front,) = others(program)
    tap = program.tap(first)
    async with Line(program, first) as here, Line(program, front) as there:
        for target in targets:
            answers = [await line.ask(get(target, WITH_TOKEN)) for line in (here, there)]
            assert answers[0].status == answers[1].status, target
            assert answers[0].body == answers[1].body, target
        passed_on = [message.start for message in tap.requests()]
    assert len(passed_on) > 20
    assert all(re.fullmatch(rb"GET /api/[!-~]+ HTTP/1\.1", start) for start in passed_on)


@pytest.mark.parametrize(
    "kind",
    [
        each
        for each in vars(errors).values()
        if isinstance(each, type)
        and issubclass(each, ImgkeepError)
        and hasattr(each, "code")  # the others are only their families
        and each is not errors.FilledByPeer  # which no worker sends: the peer has 204
    ],
)
async def test_follower_in_a_peer_gets_the_same_error(kind: type[ImgkeepError]) -> None:
    error = kind("what happened")
    facts = {"origin_status": 429, "retry_after_s": 7}
    for name in facts.keys() & vars(error).keys():
        setattr(error, name, facts[name])
    stream = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16, loop=asyncio.get_running_loop())
    stream.feed_data(write_failure(FillFailure(b"link", error)))
    stream.feed_eof()
    reply = await read_fill(stream)
    assert isinstance(reply, FillFailure)
    assert (type(reply.error), str(reply.error), vars(reply.error)) == (kind, "what happened", vars(error))
    assert reply.link == b"link"
