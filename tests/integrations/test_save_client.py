"""Links are handed to imgkeep behind the back of the application, whatever imgkeep does."""

from __future__ import annotations

import asyncio
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.integrations.links import LinkRewriter
from imgkeep.integrations.save_client import BATCH_LINKS_MAX, LINKS_WAITING_MAX, Saver, saver_for
from tests.support.images import make_image
from tests.support.program import serving
from tests.support.waiting import block_until, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.origins import FakeOrigin

PATIENCE_S = 30


class Api(ThreadingHTTPServer):
    """Takes what is posted; answers as told, and at last with 202."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[tuple[str, dict[str, str], Any]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.may_answer = Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def links(self) -> list[str]:
        return [url for _, _, body in self.posted for url in body["urls"]]


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append((self.path, dict(self.headers), body))
        self.server.may_answer.wait(PATIENCE_S)
        status, headers = self.server.answers.pop(0) if self.server.answers else (202, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


def link(number: int, *, signature: int = 0) -> str:
    signed = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20261126%2Fus-east-1%2Fs3%2Faws4_request"
    signed += "&X-Amz-Date=20261126T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host"
    return f"https://b.s3.amazonaws.com/{number}.png?{signed}&X-Amz-Signature={signature:064}"


def test_links_of_a_page_are_one_request(api: Api) -> None:
    saver = Saver(f"{api.url}/base/", "the-token")
    for number in range(3):
        saver.note(link(number))
    assert saver.drain(PATIENCE_S)
    ((path, headers, body),) = api.posted
    assert path == "/base/api/save-images"
    assert (headers["Authorization"], headers["Content-Type"]) == ("Bearer the-token", "application/json")
    assert body == {"urls": [link(0), link(1), link(2)], "wait": False}


def test_image_is_saved_once_for_all_its_signed_links(api: Api) -> None:
    saver = Saver(api.url)
    for signature in range(3):
        saver.note(link(1, signature=signature))
        saver.note(link(1, signature=signature))
    assert saver.drain(PATIENCE_S)
    saver.note(link(1, signature=9))
    saver.note("https://user:secret@h.example/")
    assert saver.drain(PATIENCE_S)
    assert api.links == [link(1)]


def test_many_links_are_many_requests(api: Api) -> None:
    saver = Saver(api.url)
    for number in range(BATCH_LINKS_MAX + 1):
        saver.note(link(number))
    assert saver.drain(PATIENCE_S)
    assert [len(body["urls"]) for _, _, body in api.posted] == [BATCH_LINKS_MAX, 1]


def test_busy_server_is_asked_again(api: Api) -> None:
    api.answers += [(503, {"Retry-After": "0"}), (429, {}), (500, {})]
    saver = Saver(api.url, retry_delays_s=(0, 0, 0))
    saver.note(link(1))
    assert saver.drain(PATIENCE_S)
    assert api.links == [link(1)] * 4
    assert saver.dropped == 0


def test_refusing_server_is_left_alone_for_a_while(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.answers += [(401, {})]
    saver = Saver(api.url, "wrong-token")
    saver.note(link(1))
    assert saver.drain(PATIENCE_S)
    assert api.links == [link(1)]
    assert "1 links not sent to imgkeep: it answers 401" in caplog.text
    assert not any(secret in caplog.text for secret in ("wrong-token", "amazonaws", "Signature"))
    # When it is shown again, it is handed again.
    saver.note(link(1))
    assert saver.drain(PATIENCE_S)
    assert api.links == [link(1)] * 2


def test_redirects_are_not_followed(api: Api) -> None:
    api.answers += [(307, {"Location": f"{api.url}/elsewhere"})]
    saver = Saver(api.url, "the-token")
    saver.note(link(1))
    assert saver.drain(PATIENCE_S)
    assert [path for path, _, _ in api.posted] == ["/api/save-images"]


def test_page_does_not_wait_for_imgkeep(api: Api) -> None:
    api.may_answer.clear()
    saver = Saver(api.url)
    for number in range(100):
        saver.note(link(number))
    assert len(api.posted) <= 1, "the first request is not answered before the page is done"
    api.may_answer.set()
    assert saver.drain(PATIENCE_S)
    assert len(api.links) == 100


def test_unreachable_imgkeep_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    saver = Saver("http://127.0.0.1:9", retry_delays_s=(0,))
    for number in range(100):
        saver.note(link(number))
    assert saver.drain(PATIENCE_S)
    assert "links not sent to imgkeep: ConnectionRefusedError" in caplog.text


def test_queue_is_bounded_and_dropped_links_are_counted(api: Api) -> None:
    api.may_answer.clear()
    saver = Saver(api.url)
    for number in range(BATCH_LINKS_MAX):
        saver.note(link(number))
    block_until(lambda: api.posted)
    for number in range(LINKS_WAITING_MAX + 50):
        saver.note(f"https://h.example/{number}.png")
    assert saver.dropped == 50
    assert not saver.drain(0)
    api.may_answer.set()
    assert saver.drain(PATIENCE_S)
    assert len(api.links) == BATCH_LINKS_MAX + LINKS_WAITING_MAX
    # The one that was dropped comes again with its page, the others do not.
    saver.note(f"https://h.example/{LINKS_WAITING_MAX}.png")
    saver.note("https://h.example/0.png")
    assert saver.drain(PATIENCE_S)
    assert len(api.links) == BATCH_LINKS_MAX + LINKS_WAITING_MAX + 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_process_has_its_own_thread(api: Api) -> None:
    saver = Saver(api.url)
    saver.note(link(1))
    assert saver.drain(PATIENCE_S)
    child = os.fork()
    if child == 0:
        saver.note(link(1))
        saver.note(link(2))
        os._exit(0 if saver.drain(PATIENCE_S) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert api.links == [link(1), link(2)]


def test_parts_of_an_application_share_one() -> None:
    assert saver_for("http://h.example", None) is saver_for("http://h.example", None)


async def test_unopened_images_are_saved(tmp_path: Path, origin: FakeOrigin) -> None:
    origin.gives("/seen.png", make_image())
    async with serving(tmp_path / "data") as program:
        url = f"http://{program.address}"
        site = LinkRewriter(public_url="https://k.example", which="all", allow="ask", save=url, token=program.token)
        await until(lambda: site.of_page(None)(origin.url("/a.png")) is not None)  # once imgkeep has told its policy
        assert "k.example/img" in site.rewrite(f'<p><img src="{origin.url("/seen.png")}"><img src="a.png">')
        assert await asyncio.to_thread(saver_for(url, program.token).drain, PATIENCE_S)
        await until(lambda: any((tmp_path / "data/v1/objects").rglob("*.png")))
        assert origin.asked("/seen.png") == 1
