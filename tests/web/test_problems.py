"""Every error has its answer, and none tells more than it may."""

from __future__ import annotations

import inspect
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.server import SERVICES
from imgkeep.core import errors
from imgkeep.core.errors import ImgkeepError, OriginError, SourceRejected
from imgkeep.observability.logs import RecordFormatter
from imgkeep.web.error_to_problem import STATUSES, problem_response
from tests.support.image_requests import store_image
from tests.support.images import make_image, png_of
from tests.support.raw_http import ask, port_of, request, talk, target_of
from tests.support.tables import table

if TYPE_CHECKING:
    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

ABSTRACT = {ImgkeepError, SourceRejected}
"""Never raised themselves."""
ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ImgkeepError) and kind not in ABSTRACT and "code" in vars(kind)
]
"""A class without a code of its own tells the same as its base."""
CONTRACT = {
    "invalid_source": 400,
    "invalid_request": 400,
    "invalid_option": 400,
    "options_forbidden": 403,
    "not_supported": 501,
    "derive_failed": 422,
    "source_forbidden": 403,
    "signature_required": 403,
    "signature_invalid": 403,
    "signature_expired": 403,
    "forbidden": 403,
    "unauthorized": 401,
    "loop_detected": 508,
    "rate_limited": 429,
    "removed": 410,
    "busy": 503,
    "source_expired": 410,
    "source_not_found": 404,
    "origin_refused": 502,
    "origin_timeout": 504,
    "not_an_image": 422,
    "too_large": 422,
    "origin_error": 502,
    "storage_unavailable": 503,
}


@table("kind", ALL)
def test_every_error_is_in_the_table(kind: type[ImgkeepError]) -> None:
    places = [place for place, _, _ in STATUSES]
    assert places.count(kind) == 1
    assert kind.code in CONTRACT
    answer = problem_response(kind("the reason"))
    assert answer.status == CONTRACT[kind.code]
    assert isinstance(answer.body, bytes)
    reply = json.loads(answer.body)
    assert reply == {
        "type": f"urn:imgkeep:problem:{kind.code}",
        "title": reply["title"],
        "status": answer.status,
        "detail": "the reason",
        "code": kind.code,
    }
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert ("Retry-After" in answer.headers) == (answer.status in {429, 503})
    assert ("Cache-Status" in answer.headers) == issubclass(kind, OriginError)


def test_every_code_is_unique() -> None:
    assert sorted(kind.code for kind in ALL) == sorted(CONTRACT)


def test_subclass_stands_before_its_base() -> None:
    places = [place for place, _, _ in STATUSES]
    for number, place in enumerate(places):
        assert not any(issubclass(later, place) for later in places[number + 1 :])


def test_retry_after_of_the_origin_is_passed_on() -> None:
    answer = problem_response(OriginError("x", origin_status=429, retry_after_s=17))
    assert (answer.status, answer.headers["Retry-After"]) == (502, "17")
    assert answer.headers["Cache-Status"] == "imgkeep; fwd=uri-miss; fwd-status=429"
    assert problem_response(errors.Busy("x", retry_after_s=2)).headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        pytest.param({"body": b"", "status": "404 Not Found"}, 404, "source_not_found", id="404"),
        pytest.param({"body": b"", "status": "410 Gone"}, 404, "source_not_found", id="410"),
        pytest.param({"body": b"", "status": "403 Forbidden"}, 502, "origin_refused", id="403"),
        pytest.param({"body": b"", "status": "500 Oops"}, 502, "origin_error", id="500"),
        pytest.param({"body": b"<html>"}, 422, "not_an_image", id="HTML"),
        pytest.param({"body": b""}, 502, "origin_error", id="nothing"),
        pytest.param({"body": make_image("PNG"), "length": 60_000_000}, 422, "too_large", id="too large"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_failure_of_an_origin_is_the_same_twice(  # noqa: PLR0917 - a table
    imgkeep: Imgkeep, origin: FakeOrigin, how: dict[str, Any], status: int, code: str, method: str
) -> None:
    url = origin.gives("/a.png", **how) + "?X-Signature=topsecret"
    for _ in range(2):
        answer = await ask(imgkeep, target_of(url), method=method)
        assert answer.status == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["server"] == "imgkeep"
        assert "etag" not in answer.headers
        if method == "GET":
            assert json.loads(answer.body)["code"] == code
            assert b"topsecret" not in answer.body
            assert b"/a.png" not in answer.body
        else:
            assert answer.body == b""
    assert origin.asked("/a.png") == 1
    assert imgkeep.files("objects") == imgkeep.files("records") == imgkeep.files("partial") == []


async def test_unexpected_error_is_a_500_without_its_message(
    imgkeep: Imgkeep, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    url = origin.gives("/a.png", png_of(1000))
    app = imgkeep.client.app
    assert app is not None
    image_service = app[SERVICES].image_service

    message = f"{url}?token=topsecret"  # not in the line that raises: tracebacks quote the program

    def broken(_: object) -> Any:
        raise ZeroDivisionError(message)

    image_service.identify = broken
    with caplog.at_level(logging.INFO):
        answer = await ask(imgkeep, target_of(url))
    assert answer.status == 500
    reply = json.loads(answer.body)
    assert (reply["code"], reply["status"]) == ("internal_error", 500)
    assert answer.headers["cache-control"] == "no-store"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    lines = [RecordFormatter(form).format(record) for form in ("text", "json")]
    for text in (*lines, answer.body.decode()):
        assert "topsecret" not in text
        assert "/a.png" not in text
    assert all("ZeroDivisionError" in line for line in lines)
    assert (await ask(imgkeep, "/healthz")).status == 200


async def test_unexpected_error_in_a_body_breaks_the_connection(
    imgkeep: Imgkeep, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 behind the first bytes of an image would be taken for more of the image."""
    body = png_of(200_000)
    await store_image(imgkeep, origin.gives("/a.png", body))
    app = imgkeep.client.app
    assert app is not None
    store = app[SERVICES].image_service._dependencies.store

    class Bomb:
        size = len(body)
        cache_entry = None

        async def wait_for_size(self) -> int:
            return self.size

        async def read(self, offset: int, size: int) -> bytes:
            if offset > 50_000:
                raise ZeroDivisionError
            return body[offset : offset + size]

        async def aclose(self) -> None:
            return

    class Minefield:
        name = "mined"
        local_drafts_only = True
        find, holds, put = store.find, store.holds, store.put
        put_tombstone, put_record = store.put_tombstone, store.put_record
        block, list_blocked = store.block, store.list_blocked
        find_block, unblock, has_object, delete_object = (
            store.find_block,
            store.unblock,
            store.has_object,
            store.delete_object,
        )
        find_tombstone, delete_tombstone = store.find_tombstone, store.delete_tombstone

        async def fetch(self, name: str, size: int | None) -> Bomb:
            del name, size
            return Bomb()

    app[SERVICES].image_service.stored._store = Minefield()
    answer = await ask(imgkeep, target_of(origin.url("/a.png")))
    assert answer.status == 200
    assert len(answer.body) < len(body)
    assert body.startswith(answer.body)
    assert "unforeseen error" in [record.getMessage() for record in caplog.records]


async def test_broken_image_breaks_the_client_connection(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    body = png_of(200_000)

    def cut(*framing: str, chunked: bool) -> Any:
        async def script(exchange: Exchange) -> None:
            await exchange.send_head(*framing)
            await exchange.send((b"186a0\r\n" if chunked else b"") + body[:100_000])
            exchange.finish()

        return script

    for url in (
        origin.on("/chunked.png", cut("Transfer-Encoding: chunked", chunked=True)),
        origin.on("/declared.png", cut("Content-Length: 200000", chunked=False)),
    ):
        answer = await ask(imgkeep, target_of(url))
        assert answer.status in {200, 502}, answer.status
        assert not answer.body.endswith(b"0\r\n\r\n")
        if answer.status == 200 and "content-length" in answer.headers:
            assert len(answer.body) < 200_000


@pytest.mark.parametrize(("path", "status"), [("/api/rewrite", 415), ("/api/save-image", 415), ("/img?src=x", 405)])
async def test_body_in_another_coding_disturbs_nothing(
    imgkeep: Imgkeep, caplog: pytest.LogCaptureFixture, path: str, status: int
) -> None:
    fields = ["Host: 127.0.0.1", "Content-Type: text/html", "Content-Encoding: gzip", "Content-Length: 2"]
    fields.append(f"Authorization: Bearer {imgkeep.token}")
    data = "\r\n".join([f"POST {path} HTTP/1.1", *fields, "", "xx"]).encode()
    answers = await talk(port_of(imgkeep), data + request("/healthz"))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answers) == [b"%d" % status, b"200"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
