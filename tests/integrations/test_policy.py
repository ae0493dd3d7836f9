"""A link that imgkeep would refuse stays as it is."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

import imgkeep.integrations
from imgkeep.core.identity import BUILT_IN
from imgkeep.core.policy import PORTS
from imgkeep.integrations import asgi, django, img_url, jinja, wsgi
from imgkeep.integrations.links import LinkRewriter
from imgkeep.integrations.policy import ANSWER_BYTES_MAX, PolicyClient, Rules, make_policy
from tests.support.program import serving
from tests.support.tables import table
from tests.support.waiting import block_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIGNED = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20261126%2Fus-east-1%2Fs3%2Faws4_request"
    f"&X-Amz-Date=20261126T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
)
SHARED = f"https://b.s3.amazonaws.com/a.png?{SIGNED}"
AZURE = f"sv=2024-11-04&se=2026-11-26T01%3A00%3A00Z&sr=b&sp=r&sig={'A' * 43}%3D"
KNOWN = f"https://oaidalleapiprodscus.blob.core.windows.net/private/a.png?{AZURE}"
K = "https://k.example"
PATIENCE_S = 10


def rewrites(link: str, **options: Any) -> bool:
    return LinkRewriter(public_url=K, **options).of_page("https://site.example/page")(link) is not None


@table(
    ("link", "options", "rewritten"),
    [
        (KNOWN, {}, True),
        (SHARED, {}, False),
        (SHARED, {"which": "all"}, False),
        (SHARED, {"which": lambda _: True}, False),
        (SHARED, {"which": ["b.s3.amazonaws.com"]}, True),
        (SHARED, {"signing_key": "k" * 16}, True),
        (SHARED, {"allow": ["*"]}, True),
        (SHARED, {"allow": ["known", "b.s3.amazonaws.com"]}, True),
        (SHARED, {"allow": ["b.s3.amazonaws.com"], "signing_key": "k" * 16}, True),
        (KNOWN, {"allow": ["b.s3.amazonaws.com"], "signing_key": "k" * 16}, False),
        (KNOWN, {"allow": []}, False),
        (KNOWN, {"deny": ["*.core.windows.net"]}, False),
        (KNOWN, {"deny": ["oaidalleapiprodscus.blob.core.windows.net/private/*"]}, False),
        ("https://x.ours.example/a.png", {"which": "all"}, False),
        (
            "https://x.ours.example/a.png",
            {"providers": [{"name": "Ours", "hosts": ["*.ours.example"], "temporary": True}]},
            True,
        ),
        ("https://o.example:81/a.png", {"which": "all", "allow": ["*"]}, False),
        ("https://o.example:81/a.png", {"which": "all", "allow": ["*"], "allow_ports": [81]}, True),
        ("http://10.1.2.3/a.png", {"which": "all", "allow": ["*"]}, False),
        ("http://10.1.2.3/a.png", {"which": "all", "allow": ["*"], "allow_networks": ["10.1.0.0/16"]}, True),
        ("http://pictures.local/a.png", {"which": "all", "allow": ["*"]}, False),
        ("http://169.254.169.254/a.png", {"which": ["169.254.169.254"]}, False),
    ],
)
def test_link_that_would_be_refused_stays(link: str, options: Any, rewritten: bool) -> None:  # noqa: FBT001
    assert rewrites(link, **options) is rewritten


@pytest.mark.parametrize("link", [SHARED, "http://10.1.2.3:81/a.png", "https://o.example/a.png"])
def test_single_link_that_is_written_out_is_always_rewritten(link: str) -> None:
    wanted = f"{K}/img?src={quote(link, safe='')}"
    assert LinkRewriter(public_url=K).img_url(link) == wanted
    assert img_url(link, public_url=K) == wanted
    assert img_url(link) == wanted.removeprefix(K)
    assert img_url(link, public_url=K, signing_key="k" * 16).startswith(f"{wanted}&sig=")


def test_single_link_that_is_none_to_an_image_stays() -> None:
    for link in (
        "",
        "data:image/png;base64,AA==",
        "a.png",
        f"{K}/img?src=a",
        "https://u:p@o.example/a.png",
        "javascript:1",
    ):
        assert img_url(link, public_url=K) == link
    assert (
        img_url("/a.png", public_url=K, site_url="https://s.example") == f"{K}/img?src=https%3A%2F%2Fs.example%2Fa.png"
    )
    with pytest.raises(ValueError, match="public_url: it is not an absolute"):
        img_url("https://o.example/a.png", public_url="k.example")


def test_function_for_single_links_is_where_people_look_for_it() -> None:
    assert imgkeep.integrations.img_url is asgi.img_url is wsgi.img_url is jinja.img_url
    assert callable(django.img_url)


# --- asking imgkeep


class Api(ThreadingHTTPServer):
    """Answers as told, and notes what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.status = 200
        self.body = policy_body()
        self.may_answer = Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.server.may_answer.wait(PATIENCE_S)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None: ...


def policy_body(**changes: Any) -> bytes:
    reply = {"allow": ["b.s3.amazonaws.com"], "deny": [], "ports": [443], "networks": [], "signature": "off", **changes}
    return json.dumps(reply).encode()


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


def wait_for(rules: PolicyClient) -> Rules:
    block_until(lambda: rules.current is not None, within_s=PATIENCE_S)
    assert rules.current is not None
    return rules.current


OTHERWISE = Rules(make_policy(["known"], [], BUILT_IN))


def test_links_stay_until_the_policy_is_known(api: Api) -> None:
    api.may_answer.clear()
    site = LinkRewriter(public_url=api.url, allow="ask", token="the-token\n")
    assert site.of_page(None)(KNOWN) is None
    assert site.img_url(KNOWN) != KNOWN
    api.may_answer.set()
    block_until(lambda: site.of_page(None)(SHARED) is not None, within_s=PATIENCE_S)
    assert site.of_page(None)(KNOWN) is None
    assert api.asked == [("/api/policy", "Bearer the-token")]


def test_site_without_a_key_rewrites_no_link_that_needs_a_signature(api: Api) -> None:
    api.body = policy_body(signature="misses")
    site = LinkRewriter(public_url="https://k.example", allow="ask", save=f"{api.url}/base/", token="t")
    signing = LinkRewriter(
        public_url="https://k.example", allow="ask", save=f"{api.url}/base/", token="t", signing_key="k" * 16
    )
    block_until(lambda: signing.of_page(None)(SHARED) is not None, within_s=PATIENCE_S)
    block_until(lambda: len(api.asked) >= 2, within_s=PATIENCE_S)
    assert site.of_page(None)(SHARED) is None
    assert {path for path, _ in api.asked} == {"/base/api/policy"}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"", "it answers 401"),
        (404, b"", "it answers 404"),
        (200, b"<html>", "its answer is no policy"),
        (200, b"[]", "its answer is no policy"),
        (200, b"[" * 200_000, "its answer is no policy"),
        (200, policy_body(allow="*"), "its answer is no policy"),
        (200, policy_body(allow=["https://secret"]), "its answer is no policy"),
        (200, policy_body(networks=["nowhere"]), "its answer is no policy"),
        (200, policy_body(ports=["x"]), "its answer is no policy"),
        (200, b" " * (ANSWER_BYTES_MAX + 1), "its answer is too large"),
    ],
)
def test_site_that_gets_no_answer_goes_by_its_options(
    api: Api, caplog: pytest.LogCaptureFixture, status: int, body: bytes, reason: str
) -> None:
    api.status, api.body = status, body
    with caplog.at_level(logging.WARNING):
        rules = PolicyClient(api.url, "the-token", BUILT_IN, OTHERWISE)
        assert wait_for(rules) is OTHERWISE
    assert f"policy of imgkeep not fetched: {reason}" in caplog.text
    assert "secret" not in caplog.text
    assert "the-token" not in caplog.text


@pytest.mark.parametrize("how", ["nothing listens", "503", "hangs up"])
def test_links_stay_while_imgkeep_is_unreachable(api: Api, how: str, reserve_port: Callable[[], int]) -> None:
    """The default would rewrite links that this imgkeep denies, or wants signed."""
    url, back = api.url, None
    if how == "503":
        api.status = 503
    elif how == "hangs up":
        api.status = 0
    else:
        url = f"http://127.0.0.1:{reserve_port()}"
    rules = PolicyClient(url, "t", BUILT_IN, OTHERWISE, retry_s=0)
    for _ in range(3):
        thread = rules._thread
        assert thread is not None
        thread.join(PATIENCE_S)
        assert rules.current is None
    if how != "nothing listens":
        api.status = 200
        back = wait_for(rules)
        assert back.policy.hosts_allowed == ("b.s3.amazonaws.com",)


def test_imgkeep_that_is_away_is_not_asked_for_each_page(api: Api) -> None:
    api.status = 503
    rules = PolicyClient(api.url, "t", BUILT_IN, OTHERWISE)
    assert rules._thread is not None
    rules._thread.join(PATIENCE_S)
    for _ in range(20):
        assert rules.current is None
    assert len(api.asked) == 1


def test_known_policy_outlives_an_outage_and_a_new_one_is_learnt(api: Api) -> None:
    rules = PolicyClient(api.url, "t", BUILT_IN, OTHERWISE, retry_s=0, every_s=0)
    first = wait_for(rules)
    assert first.policy.hosts_allowed == ("b.s3.amazonaws.com",)
    api.status = 503
    asked = len(api.asked)
    end = time.monotonic() + PATIENCE_S
    while len(api.asked) < asked + 3:
        assert time.monotonic() < end
        assert (rules.current or OTHERWISE).policy.hosts_allowed == ("b.s3.amazonaws.com",)
        time.sleep(0.005)
    api.status, api.body = 200, policy_body(allow=["*"])
    block_until(lambda: (rules.current or OTHERWISE).policy.hosts_allowed == ("*",), within_s=PATIENCE_S)


def test_widths_are_those_of_the_imgkeep_that_is_asked(api: Api) -> None:
    api.body = policy_body(widths=[100, 200, 300])
    page = '<img width=100 src="https://b.s3.amazonaws.com/a.png">'
    site = LinkRewriter(public_url=api.url, which="all", allow="ask", token="t", pictures={"widths": "auto"})
    block_until(lambda: site.rewrite(page) != page, within_s=PATIENCE_S)
    assert re.findall(r" (\d+)w", site.rewrite(page)) == ["100", "200"]


def test_child_of_a_fork_asks_for_itself(api: Api) -> None:
    api.may_answer.clear()
    rules = PolicyClient(api.url, "t", BUILT_IN, OTHERWISE)
    child = os.fork()
    if child == 0:
        end = time.monotonic() + PATIENCE_S
        while rules.current is None and time.monotonic() < end:
            time.sleep(0.005)
        os._exit(0 if rules.current is not None else 1)
    block_until(lambda: len(api.asked) >= 2, within_s=PATIENCE_S)
    api.may_answer.set()
    assert os.waitpid(child, 0)[1] == 0


async def test_policy_of_a_real_server(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "sources__allow": "known,*.o.example",
        "sources__deny": "bad.o.example",
        "fetch__allow_ports": "443",
        "fetch__allow_networks": "10.1.0.0/16",
    }
    links = {
        "known": KNOWN,
        "allowed": "https://a.o.example/a.png",
        "denied": "https://bad.o.example/a.png",
        "shared": SHARED,
        "port": "https://a.o.example:8443/a.png",
    }
    async with serving(tmp_path / "data", **settings) as program:
        url = f"http://{program.address}"
        async with program.session.get(f"{url}/api/policy") as response:
            reply = await response.json()
        assert set(BUILT_IN.known_hosts) < set(reply["allow"])
        assert reply["deny"] == ["bad.o.example"]
        assert (reply["ports"], reply["networks"], reply["signature"]) == ([443], ["10.1.0.0/16"], "off")
        async with program.session.get(f"{url}/api/policy", headers={"Authorization": ""}) as response:
            assert response.status == 401
        rules = PolicyClient(url, program.token, BUILT_IN, OTHERWISE)
        known = await asyncio.to_thread(wait_for, rules)
        site = LinkRewriter(public_url=url, which="all", allow="ask", token=program.token)
        await asyncio.to_thread(wait_for, site._rules)  # type: ignore[arg-type]
        for link in links.values():
            async with program.session.get(f"{url}/api/inspect?src={quote(link, safe='')}") as response:
                allowed = (await response.json())["allowed"]
            assert (site.of_page(None)(link) is not None) is allowed
        assert known.policy.networks
    assert OTHERWISE.policy.ports == frozenset(PORTS)
