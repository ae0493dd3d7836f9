"""`POST /api/save-image`: by link, by data URL, by upload; and everything that is no such request."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import FormData
from yarl import URL

from imgkeep.core.data_url import identify_bytes
from imgkeep.core.records import Digest
from imgkeep.web.auth import AUTH
from tests.support.api_calls import data_url, post, save
from tests.support.images import make_image, png_of
from tests.support.raw_http import port_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp import ClientResponse

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="2" height="3"/>'


def form(body: bytes, name: str = "file") -> FormData:
    data = FormData()
    data.add_field(name, BytesIO(body), filename="a.png", content_type="image/png")
    return data


# --- saved images


async def test_saved_link_has_a_permanent_url(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = make_image()
    url = origin.gives("/a.png", body)
    status, reply = await save(imgkeep, {"url": url})
    assert status == 201
    digest = sha256(body).hexdigest()
    assert reply.pop("url") == f"http://127.0.0.1:{port_of(imgkeep)}/images/{digest}.png"
    assert len(reply.pop("key")) == 64
    stored_at = reply.pop("stored_at")
    assert reply == {
        "success": True,
        "storage": "local",
        "created": True,
        "digest": digest,
        "content_type": "image/png",
        "size": len(body),
        "width": 64,
        "height": 48,
        "picture": None,
        "standing": "plain",
        "doubts": ["unsigned", "plaintext"],
        "suspect": False,
        "source": {"host": "127.0.0.1", "provider": None, "temporary": False, "expires_at": None},
    }
    await origin.stop()
    assert await (await imgkeep.client.get(f"/images/{digest}.png")).read() == body
    response = await imgkeep.img(url)
    assert response.headers["Cache-Status"] == "imgkeep; hit"
    status, again = await save(imgkeep, {"url": url})
    assert (status, again["created"], again["stored_at"]) == (200, False, stored_at)


async def test_save_joins_a_running_fill(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()
    body = png_of(50_000)

    async def slow(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        await exchange.send(body[:30_000])
        await go.wait()
        await exchange.send(body[30_000:])

    url = origin.on("/a.png", slow)
    looking = await imgkeep.img(url)
    saving = [asyncio.create_task(save(imgkeep, {"url": url})) for _ in range(5)]
    early, _ = await asyncio.wait(saving, timeout=0.05)
    assert not early
    go.set()
    assert {(status, reply["created"]) for status, reply in await asyncio.gather(*saving)} == {(200, False)}
    assert await looking.read() == body
    assert origin.asked("/a.png") == 1


async def test_image_is_stored_though_its_client_left(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(make_image())

    url = origin.on("/a.png", slow)
    saving = asyncio.create_task(save(imgkeep, {"url": url}))
    await until(lambda: origin.seen)
    saving.cancel()
    go.set()
    assert (await save(imgkeep, {"url": url}))[0] == 200
    assert origin.asked("/a.png") == 1


@pytest.mark.parametrize("way", ["data URL", "upload"])
@pytest.mark.parametrize("body", [make_image(), png_of(3_000_000), SVG], ids=["small", "large", "SVG"])
async def test_equal_bytes_are_stored_once(imgkeep: Imgkeep, way: str, body: bytes) -> None:
    extension, media_type = ("svg", "image/svg+xml") if body == SVG else ("png", "image/png")
    names = set()
    for created in (True, False):
        if way == "upload":
            response = await imgkeep.client.post("/api/save-image", data=form(body))
        else:
            response = await post(imgkeep, json.dumps({"data": data_url(body)}).encode())
        reply = await response.json()
        assert (response.status, reply["created"]) == (201 if created else 200, created), reply
        assert reply["key"] == identify_bytes(Digest(sha256(body).hexdigest())).key
        assert (reply["content_type"], reply["size"]) == (media_type, len(body))
        assert reply["source"] == {"host": None, "provider": None, "temporary": False, "expires_at": None}
        names.add(f"{reply['digest']}.{extension}")
    (name,) = names
    permanent = await imgkeep.client.get(f"/images/{name}")
    assert await permanent.read() == body
    assert len(imgkeep.files("records")) == len(imgkeep.files("objects")) == 1
    assert imgkeep.files("partial") == []


@pytest.mark.parametrize(
    "text",
    [
        data_url(make_image(), "text/html"),
        data_url(make_image(), ""),
        data_url(make_image(), "image/PNG;charset=x").replace("data:", "DATA:"),
        data_url(make_image()).rstrip("="),
        data_url(make_image()).replace("A", "\nA"),
        "data:image/png;base64," + "".join(f"%{byte:02X}" for byte in base64.b64encode(make_image())),
        "data:image/png," + "".join(f"%{byte:02X}" for byte in make_image()),
    ],
    ids=["lies", "no type", "parameters", "no padding", "line breaks", "encoded base64", "no base64"],
)
async def test_data_url_is_judged_by_its_bytes(imgkeep: Imgkeep, text: str) -> None:
    status, reply = await save(imgkeep, {"data": text})
    assert (status, reply["content_type"], reply["digest"]) == (201, "image/png", sha256(make_image()).hexdigest())


async def test_absolute_urls_ignore_what_clients_claim(start: Start) -> None:
    token = "t" * 20
    headers = {"Authorization": f"Bearer {token}", "Host": "evil.example"}
    name = f"{sha256(make_image()).hexdigest()}.png"
    for server, base in (
        ({"public_url": "https://img.example/x/"}, "https://img.example/x"),
        ({"host": "0.0.0.0"}, ""),
        ({}, ""),
    ):
        imgkeep = await start(server=server, security={"api_tokens": [token]})
        response = await imgkeep.client.post("/api/save-image", json={"data": data_url(make_image())}, headers=headers)
        assert (await response.json())["url"] == f"{base}/images/{name}"


# --- what is not


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("", 400, "invalid_source"),
        ("ftp://a.example/", 400, "invalid_source"),
        ("https://user:pass@a.example/", 403, "source_forbidden"),
        ("http://169.254.169.254/latest", 403, "source_forbidden"),
        ("http://127.0.0.1:1/", 502, "origin_error"),
    ],
)
async def test_unsavable_link_fails_as_under_img(imgkeep: Imgkeep, url: str, status: int, code: str) -> None:
    got, reply = await save(imgkeep, {"url": url})
    assert (got, reply["code"], reply["success"]) == (status, code, False)


async def test_other_bytes_are_not_stored(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    page = b"<html>please log in</html>"
    assert (await save(imgkeep, {"url": origin.gives("/a.png", page)}))[1]["code"] == "not_an_image"
    for body in (page, b"", make_image()[:-8], png_of(500_000)[:400_000]):
        status, reply = await save(imgkeep, {"data": data_url(body)})
        assert (status, reply["code"]) == (422, "not_an_image")
        response = await imgkeep.client.post("/api/save-image", data=form(body))
        assert (response.status, (await response.json())["code"]) == (422, "not_an_image")
        assert "Cache-Status" not in response.headers
    assert imgkeep.files("objects") == imgkeep.files("records") == imgkeep.files("partial") == []


async def test_limits_hold_for_uploads(start: Start) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 100_000, "pixels_max": 3071})
    for body in (png_of(200_000), make_image()):
        for response in (
            await post(imgkeep, json.dumps({"data": data_url(body)}).encode()),
            await imgkeep.client.post("/api/save-image", data=form(body)),
        ):
            assert (response.status, (await response.json())["code"]) == (422, "too_large")
    assert imgkeep.files("objects") == imgkeep.files("partial") == []


async def test_own_permanent_url_names_the_stored_image(imgkeep: Imgkeep) -> None:
    _, reply = await save(imgkeep, {"data": data_url(make_image())})
    assert await save(imgkeep, {"url": reply["url"]}) == (200, {**reply, "created": False})
    status, problem = await save(imgkeep, {"url": reply["url"].replace(reply["digest"], "0" * 64)})
    assert (status, problem["code"]) == (404, "not_found")
    await imgkeep.client.delete(f"/api/images/{reply['key']}")
    status, problem = await save(imgkeep, {"url": reply["url"]})
    assert (status, problem["code"]) == (410, "removed")


async def test_own_server_as_source_is_a_loop(start: Start) -> None:
    imgkeep = await start(server={"public_url": "https://img.example"}, security={"api_tokens": ["t" * 20]})
    headers = {"Authorization": "Bearer " + "t" * 20}
    body = {"url": "https://img.example/img?src=x"}
    response = await imgkeep.client.post("/api/save-image", json=body, headers=headers)
    assert (response.status, (await response.json())["code"]) == (508, "loop_detected")


MALFORMED: list[tuple[str | bytes, str]] = [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("nul", "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    ('{"url": "\\ud800"}', ""),
    ("[" * 100_000, ""),
    ('{"url": ' + "[" * 100_000, ""),
    ("[]", "expected object"),
    ("{}", "needs url or data"),
    ('{"url": null}', "needs url or data"),
    ('{"url": 1}', "url: expected str"),
    ('{"url": {"a": 1}}', "url: expected str"),
    ('{"urll": "x"}', "unknown field urll"),
    ('{"https://a.example/?token=s3cr3t": 1}', "unknown field"),
    ('{"url": "https://a.example/", "data": "data:,"}', "not both"),
    ("{" + ",".join(map('"f%d": 1'.__mod__, range(1_000_000))) + "}", "unknown field f0"),
    ('{"data": "https://a.example/"}', "not a data URL"),
    ('{"data": "data:image/png;base64,####"}', "not valid base64"),
    ('{"data": "data:image/png;base64,A"}', "not valid base64"),
]


async def test_malformed_request_is_refused_at_once(imgkeep: Imgkeep, subtests: pytest.Subtests) -> None:
    for body, says in MALFORMED:
        with subtests.test(body=body[:40]):
            async with asyncio.timeout(20):
                response = await post(imgkeep, body.encode() if isinstance(body, str) else body)
            reply = await response.json()
            assert response.status == 400, reply
            assert reply["code"] in {"invalid_request", "invalid_source"}
            assert says in reply["detail"]
            assert "s3cr3t" not in str(reply)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_gigabyte_is_not_read(imgkeep: Imgkeep, *, declared: bool) -> None:
    sent = 0

    async def gigabyte() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"url": "'
        for _ in range(1024):
            sent += 1
            yield b"a" * 1_048_576

    headers = {"Content-Type": "application/json"}
    if declared:
        # By hand: a client that waits for its body to be taken would not see the answer.
        head = "POST /api/save-image HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {imgkeep.token}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(imgkeep))
        writer.write(f"{head}Content-Length: 1073741824\r\n\r\n{{".encode())
        answer = await reader.readuntil(b"}")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"request_too_large"' in answer
        return
    try:
        response: ClientResponse = await imgkeep.client.post("/api/save-image", data=gigabyte(), headers=headers)
    except ConnectionError:
        pass  # the answer came, and then the rest was not taken
    else:
        assert (response.status, (await response.json())["code"]) == (413, "request_too_large")
    assert sent < 100


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/plain"}, b'{"url": "https://a.example/"}'),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"url=https://a.example/"),
        ({}, b'{"url": "https://a.example/"}'),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, gzip.compress(b'{"url": "' + bytes(10**7))),
    ],
    ids=["text", "form", "nothing", "zip bomb"],
)
async def test_only_plain_json_and_forms_are_read(imgkeep: Imgkeep, headers: dict[str, str], body: bytes) -> None:
    response = await imgkeep.client.post("/api/save-image", data=body, headers=headers)
    assert (response.status, (await response.json())["code"]) == (415, "unsupported_media_type")
    if "Content-Encoding" not in headers:
        detail = (await response.json())["detail"]
        assert all(form in detail for form in ("application/json", "multipart/form-data", "image/*", "url", "file"))
        assert response.headers["Accept"] == "application/json, multipart/form-data, image/*"


async def test_form_without_a_file_is_refused(imgkeep: Imgkeep) -> None:
    answers = []
    for how in (
        {"data": form(make_image(), name="image")},
        {"data": b"nothing", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"data": b"nothing", "headers": {"Content-Type": "multipart/form-data"}},
        {
            "data": b"--x\r\nFalse--x--\r\n",
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        {
            "data": b"--x\r\nA: \x00\xff\r\n\r\n--x--\r\n",
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        {
            "data": b"--x\r\n" + b"a" * 100_000,
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        {
            "data": b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc',
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
    ):
        response = await imgkeep.client.post("/api/save-image", **how)
        answers.append((response.status, (await response.json())["code"]))
    assert answers[:-1] == [(400, "invalid_request")] * (len(answers) - 1)
    assert answers[-1][0] in {400, 422}
    encoded = b'--x\r\nContent-Disposition: form-data; name="file"\r\nContent-Encoding: gzip\r\n\r\nabc\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = await imgkeep.client.post("/api/save-image", data=encoded, headers=headers)
    assert response.status == 415
    assert imgkeep.files("partial") == []


async def test_broken_upload_leaves_nothing(imgkeep: Imgkeep) -> None:
    body = png_of(500_000)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + body[:300_000]
    request = (
        "POST /api/save-image HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Authorization: Bearer {imgkeep.token}\r\nContent-Length: {len(body) + 200}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(imgkeep))
    writer.write(request + head)
    await writer.drain()
    await until(lambda: imgkeep.files("partial"))
    writer.close()
    await until(lambda: not imgkeep.files("partial"))
    assert imgkeep.files("objects") == []
    del reader


async def test_page_of_another_site_cannot_upload(imgkeep: Imgkeep) -> None:
    response = await imgkeep.stranger.post(
        "/api/save-image", data=form(make_image()), headers={"Origin": "https://evil.example"}
    )
    assert response.status == 401
    assert imgkeep.files("objects") == []
    assert imgkeep.client.app is not None
    assert imgkeep.client.app[AUTH].own_hosts


# --- the body is the image


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/x-whatever; charset=x", "IMAGE/PNG"])
async def test_image_body_is_stored_by_the_type_of_its_bytes(imgkeep: Imgkeep, kind: str) -> None:
    body = make_image(seed=3)
    reply: dict[str, Any] = {}
    for status in (201, 200):
        response = await imgkeep.client.post("/api/save-image", data=body, headers={"Content-Type": kind})
        reply = await response.json()
        assert (response.status, reply["digest"]) == (status, sha256(body).hexdigest())
        assert reply["content_type"] == "image/png"
    served = await imgkeep.client.get(URL(reply["url"]).path)
    assert await served.read() == body


async def test_image_body_may_be_chunked(imgkeep: Imgkeep) -> None:
    body = png_of(300_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    response = await imgkeep.client.post("/api/save-image", data=pieces(), headers={"Content-Type": "image/png"})
    assert (response.status, (await response.json())["size"]) == (201, len(body))


async def test_other_or_too_large_body_is_refused(start: Callable[..., Awaitable[Imgkeep]]) -> None:
    imgkeep = await start(fetch={"body_bytes_max": 100_000})
    headers = {"Content-Type": "image/png"}
    for body, code in ((b"", "not_an_image"), (b"<html>", "not_an_image"), (png_of(200_000), "too_large")):
        response = await imgkeep.client.post("/api/save-image", data=body, headers=headers)
        assert (response.status, (await response.json())["code"]) == (422, code)
    assert imgkeep.files("objects") == imgkeep.files("partial") == []


async def test_broken_body_leaves_nothing(imgkeep: Imgkeep) -> None:
    body = png_of(500_000)
    lengths = (f"Content-Length: {len(body)}\r\n\r\n".encode(), b"Transfer-Encoding: chunked\r\n\r\n493e0\r\n")
    for length in lengths:
        head = (
            "POST /api/save-image HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            f"Authorization: Bearer {imgkeep.token}\r\n"
        ).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(imgkeep))
        writer.write(head + length + body[:300_000])
        await writer.drain()
        await until(lambda: imgkeep.files("partial"), within_s=5)
        writer.close()
        await until(lambda: not imgkeep.files("partial"), within_s=5)
    assert imgkeep.files("objects") == []
