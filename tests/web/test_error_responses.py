"""A failure has the form that its client reads, and the same status and facts in each of them."""

from __future__ import annotations

import asyncio
import json
import re
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.config import ConfigError
from imgkeep.core.content_negotiation import FORM_FIELDS
from imgkeep.core.errors import InvalidOption, InvalidRequest
from imgkeep.web.error_presentation import PLACEHOLDER_BYTES_MAX, present_failure, read_placeholder
from imgkeep.web.error_to_problem import problem_response
from tests.support.accept_fields import IMG, TAB
from tests.support.cluster import clustered, line_to, others
from tests.support.concurrent_requests import HeldResponse, request_concurrently, split_all, until_following
from tests.support.image_files import saved
from tests.support.images import make_image, png_of
from tests.support.program import run_here
from tests.support.raw_http import ask, connect, port_of, request, target_of
from tests.support.signing_vectors import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

PLACEHOLDER = make_image("PNG", seed=99)
IN_A_TAB = "Sec-Fetch-Dest: document"
IN_AN_IMG = "Sec-Fetch-Dest: image"
MISSING = "/images/" + "0" * 64 + ".png"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "placeholder.png"
    path.write_bytes(PLACEHOLDER)
    return str(path)


async def on_both_ways(imgkeep: Imgkeep, target: str, *fields: str, method: str = "GET") -> list[Any]:
    """Return the answers of aiohttp, and of the connection that answers plain requests itself."""
    slow = await ask(imgkeep, target, *fields, method=method)
    async with connect(port_of(imgkeep)) as line:
        line.writer.write(request(target, *fields, method=method, close=False))
        head = await line.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        body = b"" if method == "HEAD" else await line.reader.readexactly(int(length[1]))
        quick = split_all([head + body])[0]
    for answer in (slow, quick):
        for name in ("date", "connection"):
            answer.headers.pop(name, None)
    assert slow == quick
    return [slow, quick]


@pytest.mark.parametrize("field", [IN_A_TAB, f"Accept: {TAB}"])
async def test_tab_gets_a_page_with_the_facts_of_the_problem(imgkeep: Imgkeep, origin: FakeOrigin, field: str) -> None:
    url = origin.gives("/a.png", b"", status="404 Not Found") + "?X-Signature=topsecret"
    for target in (target_of(url), MISSING, "/img?src=nonsense", "/img", "/nowhere"):
        [plain, _] = await on_both_ways(imgkeep, target)
        facts = json.loads(plain.body)
        [page, _] = await on_both_ways(imgkeep, target, field)
        assert page.status == plain.status == facts["status"]
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "script" not in policy
        same = plain.headers.keys() - {"content-type", "content-length"}
        assert {name: page.headers[name] for name in same} == {name: plain.headers[name] for name in same}
        text = unescape(page.body.decode()).lower()
        for fact in ("title", "code", "detail"):
            assert facts[fact].lower() in text
        assert f"{plain.status} " in text
        assert "topsecret" not in text
        assert "<script" not in text
    assert origin.asked("/a.png") == 1


async def test_failure_varies_by_the_fields_of_its_form(imgkeep: Imgkeep) -> None:
    for target in (MISSING, "/img?src=x", "/nowhere", "/api/nowhere", "/api/images"):
        for fields in ([], [IN_A_TAB], [IN_AN_IMG], [f"Accept: {IMG}"], ["Sec-Fetch-Dest: empty"]):
            answer = await ask(imgkeep, target, *fields)
            assert answer.status >= 400
            assert answer.headers["vary"] == FORM_FIELDS


@pytest.mark.parametrize("fields", [[], ["Accept: */*"], ["Sec-Fetch-Dest: empty"], [IN_AN_IMG], [f"Accept: {IMG}"]])
async def test_other_clients_get_a_problem(imgkeep: Imgkeep, fields: list[str]) -> None:
    for answer in await on_both_ways(imgkeep, MISSING, *fields):
        assert answer.headers["content-type"] == "application/problem+json"
        assert json.loads(answer.body)["code"] == "not_found"


async def test_closed_api_shows_a_tab_the_reason(imgkeep: Imgkeep) -> None:
    page = await ask(imgkeep, "/api/images", IN_A_TAB)
    assert (page.status, page.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert page.headers["www-authenticate"].startswith("Bearer")
    assert b"unauthorized" in page.body
    posted = await ask(imgkeep, "/api/save-image", IN_A_TAB, "Content-Length: 0", method="POST")
    assert json.loads(posted.body)["success"] is False


async def test_failure_of_another_worker_is_a_page_too(tmp_path: Path) -> None:
    with clustered(tmp_path / "data", security__api_tokens=KEY) as program:
        for worker in others(program):
            async with line_to(program, worker) as (reader, writer):
                for field, form in (("Accept: */*", b"application/problem+json"), (IN_A_TAB, b"text/html")):
                    sent = request(f"/api/images/{'0' * 64}", field, f"Authorization: Bearer {KEY}", close=False)
                    writer.write(sent)
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 404")
                    assert form in head
                    length = re.search(rb"(?i)content-length: (\d+)", head)
                    assert length is not None
                    assert b"no image is stored" in (await reader.readexactly(int(length[1]))).replace(b"No", b"no")


def test_page_escapes_its_facts() -> None:
    class Fields:
        def getall(self, key: str, default: list[str], /) -> list[str]:
            return ["document"] if key == "Sec-Fetch-Dest" else default

    answer = problem_response(InvalidRequest("<script>alert(1)</script> \"'& $body ${style}"))
    page = present_failure(answer, "GET", Fields())
    assert isinstance(page.body, bytes)
    text = page.body.decode()
    assert "<script" not in text
    assert "$body ${style}" in unescape(text)
    assert answer.headers["Content-Type"] == "application/problem+json", "others may share it"
    shown = present_failure(problem_response(InvalidRequest("use `a <b>` or ` alone")), "GET", Fields()).body
    assert isinstance(shown, bytes)
    assert b"Use <code>a &lt;b&gt;</code> or ` alone." in shown
    option = present_failure(problem_response(InvalidOption("w: expected a whole number")), "GET", Fields()).body
    assert isinstance(option, bytes)
    assert b">w: expected a whole number." in option, "a name has its own case"


async def test_img_gets_the_placeholder_with_the_status_of_the_failure(
    start: Start, origin: FakeOrigin, file: str
) -> None:
    imgkeep = await start(delivery={"placeholder": file}, legacy=[{"mount": "old/names"}])
    gone = target_of(origin.gives("/a.png", b"", status="404 Not Found"))
    bad = target_of(origin.gives("/b.png", b"<html>"))
    for target, status in ((gone, 404), (bad, 422), (MISSING, 404), ("/old/names/a.png", 404), ("/img?src=x", 400)):
        for field in (IN_AN_IMG, f"Accept: {IMG}"):
            [answer, _] = await on_both_ways(imgkeep, target, field)
            assert (answer.status, answer.body) == (status, PLACEHOLDER)
            assert answer.headers["content-type"] == "image/png"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"].endswith("; sandbox")
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
            assert answer.headers["access-control-allow-origin"] == "*"
            [head, _] = await on_both_ways(imgkeep, target, field, method="HEAD")
            assert (head.status, head.body) == (status, b"")
            assert head.headers["content-length"] == str(len(PLACEHOLDER))
        for fields in ([], ["Accept: */*"], ["Sec-Fetch-Dest: empty", f"Accept: {IMG}"]):
            [answer, _] = await on_both_ways(imgkeep, target, *fields)
            assert answer.headers["content-type"] == "application/problem+json"
    assert (await ask(imgkeep, gone, IN_A_TAB)).headers["content-type"].startswith("text/html")
    for target in ("/nowhere.png", "/api/images", "/"):
        answer = await ask(imgkeep, target, IN_AN_IMG)
        assert answer.headers["content-type"].startswith("application/"), "no image is asked for there"


async def test_good_image_is_no_placeholder(start: Start, origin: FakeOrigin, file: str) -> None:
    imgkeep = await start(delivery={"placeholder": file})
    body = png_of(3000)
    target = target_of(origin.gives("/a.png", body))
    for _ in range(3):
        answer = await ask(imgkeep, target, IN_AN_IMG)
        assert (answer.status, answer.body) == (200, body)
        assert "vary" not in answer.headers
    assert (await ask(imgkeep, target, IN_AN_IMG, "Range: bytes=0-9")).status == 206
    assert (await ask(imgkeep, target, IN_AN_IMG, "If-None-Match: *")).status == 304
    assert (await ask(imgkeep, target, IN_AN_IMG, "Range: bytes=9999-")).body == b""


async def test_each_follower_of_a_failure_gets_its_own_form(start: Start, origin: FakeOrigin, file: str) -> None:
    imgkeep = await start(delivery={"placeholder": file})
    held = HeldResponse(b"", "404 Not Found")
    target = target_of(origin.on("/a.png", held))
    asked = [request_concurrently(imgkeep, target, 2, field) for field in (IN_A_TAB, IN_AN_IMG, "Accept: */*")]
    await until_following(imgkeep, 5)
    held.begin.set()
    held.end.set()
    answers = [split_all(await asyncio.gather(*tasks)) for tasks in asked]
    forms = [{answer.headers["content-type"] for answer in each} for each in answers]
    assert forms == [{"text/html; charset=utf-8"}, {"image/png"}, {"application/problem+json"}]
    assert {answer.status for each in answers for answer in each} == {404}
    assert origin.asked("/a.png") == 1


async def test_svg_placeholder_has_the_policy_of_svg(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "gone.svg"
    path.write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>gone</title></svg>')
    imgkeep = await start(delivery={"placeholder": str(path)})
    answer = await ask(imgkeep, MISSING, IN_AN_IMG)
    assert (answer.status, answer.headers["content-type"]) == (404, "image/svg+xml")
    assert "img-src data:; font-src data:; sandbox" in answer.headers["content-security-policy"]


BROKEN: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "does not exist"),
    "empty": (b"", "not a whole image"),
    "no image": (b"<html>", "not a whole image"),
    "cut": (saved("PNG")[:-20], "not a whole image"),
    "too large": (png_of(PLACEHOLDER_BYTES_MAX + 1), "more than 1048576 bytes"),
}


@pytest.mark.parametrize(("body", "reason"), BROKEN.values(), ids=BROKEN)
def test_placeholder_has_to_be_an_image(tmp_path: Path, body: bytes | None, reason: str) -> None:
    path = tmp_path / "a.png"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(ConfigError, match=rf"^delivery\.placeholder: .*{reason}"):
        read_placeholder(str(path))


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000])
def test_placeholder_has_to_be_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^delivery\.placeholder: "):
        read_placeholder(f"{tmp_path}/{name}")


def test_placeholder_of_maximum_size_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(PLACEHOLDER_BYTES_MAX))
    assert read_placeholder("") is None
    found = read_placeholder(str(path))
    assert found is not None
    assert len(found.body) == PLACEHOLDER_BYTES_MAX


@pytest.mark.parametrize(("command", "workers"), [("serve", "1"), ("serve", "2"), ("check", "1")])
async def test_wrong_placeholder_fails_the_start(tmp_path: Path, command: str, workers: str) -> None:
    settings: dict[str, Any] = {"delivery__placeholder": str(tmp_path / "nowhere.png"), "server__workers": workers}
    status, out, err = await run_here(tmp_path / "data", command, **settings)
    assert (status, out) == (2, "")
    assert err == f"imgkeep: delivery.placeholder: {tmp_path}/nowhere.png does not exist\n"


async def test_wrong_placeholder_stops_no_other_command(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"delivery__placeholder": str(tmp_path / "nowhere.png")}
    status, _, _ = await run_here(tmp_path / "data", "inspect", "https://example.com/a.png", **settings)
    assert status == 0
