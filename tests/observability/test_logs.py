"""No secret gets into a log line, a metric or an error; and the counters add up."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import pytest
from aiohttp.http_exceptions import BadHttpMessage
from hypothesis import example, given
from hypothesis import strategies as st

from imgkeep.bootstrap.server import SERVICES
from imgkeep.config import Log
from imgkeep.observability.logs import FLUSH_TIMEOUT_S, QUEUE_RECORDS_MAX, RecordFormatter, logging_to, redact
from imgkeep.observability.metrics import Metrics
from tests.support.image_requests import fills_done
from tests.support.images import png_of
from tests.support.raw_http import ask, port_of, split, talk, target_of
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

ACCESS_FIELDS = {"client", "method", "route", "key", "outcome", "status", "bytes", "ms"}
FAILURE_FIELDS = {"host", "provider", "detail"}
"""In the record of a failure besides."""


@table(
    ("text", "redacted"),
    [
        pytest.param("no link", "no link", id="nothing"),
        pytest.param("at https://h.example/a?t=1 now", "at https://h.example/... now", id="in a sentence"),
        pytest.param("https://h.example:8443/a", "https://h.example:8443/...", id="port"),
        pytest.param("http://[2001:db8::1]:80/a", "http://[2001:db8::1]:80/...", id="IPv6"),
        pytest.param("https://user:word@h.example/a", "https://h.example/...", id="user information"),
        pytest.param("https://user:w%40rd@h.example/a", "https://h.example/...", id="encoded user information"),
        pytest.param("https%3A%2F%2Fh.example%2Fa%3Ft%3D1&x", "https%3A%2F%2Fh.example/...", id="encoded"),
        pytest.param("https%253A%252F%252Fh.example%252Fa", "https%253A%252F%252Fh.example/...", id="encoded twice"),
        pytest.param("src%3Dhttps://h.example/a", "src%3Dhttps://h.example/...", id="behind an escape"),
        pytest.param("xhttps://h.example/a", "xhttps://h.example/...", id="behind a letter"),
        pytest.param(r"https:\/\/h.example\/a", r"https:\/\/h.example/...", id="JSON"),
        pytest.param("HTTPS://H.example/a", "HTTPS://H.example/...", id="upper case"),
        pytest.param("'https://h.example/it's'", "'https://h.example/...", id="quotes"),
        pytest.param("https://h.example", "https://h.example/...", id="host alone"),
        pytest.param("https://h.example?t=1", "https://h.example/...", id="no path"),
        pytest.param("https://h.example#t", "https://h.example/...", id="fragment"),
        pytest.param("http://a/b http://c/d", "http://a/... http://c/...", id="two"),
        pytest.param("https:///a", "https:///...", id="no host"),
        pytest.param("is cloudinary://123:SECRET@acme", "is cloudinary://acme/...", id="account of Cloudinary"),
        pytest.param(
            "EndpointSuffix=core.windows.net;AccountKey=U0VDUkVU==;AccountName=a",
            "EndpointSuffix=core.windows.net;AccountKey=...;AccountName=a",
            id="connection string",
        ),
        pytest.param(
            'GET /c/b?sv=2026-02-06&sig=SECRET%3D&sp=r HTTP/1.1"',
            'GET /c/b?sv=2026-02-06&sig=...&sp=r HTTP/1.1"',
            id="SAS",
        ),
        pytest.param(
            "/b/o?X-Goog-Algorithm=A&X-Goog-Credential=SECRET&X-Goog-Signature=SECRET",
            "/b/o?X-Goog-Algorithm=A&X-Goog-Credential=...&X-Goog-Signature=...",
            id="V4 signature",
        ),
    ],
)
def test_urls_are_cut_down_to_their_host(text: str, redacted: str) -> None:
    assert redact(text) == redacted


VISIBLE = st.characters(codec="utf-8", exclude_categories=("Z", "C"))
TAIL = st.text(VISIBLE, max_size=30)


def as_it_is(url: str) -> str:
    return url


def encoded(url: str) -> str:
    return quote(url, safe="")


def encoded_twice(url: str) -> str:
    return quote(quote(url, safe=""), safe="")


def in_json(url: str) -> str:
    return json.dumps({"u": url}).replace("/", "\\/")


@pytest.mark.parametrize("spelling", [as_it_is, encoded, encoded_twice, in_json, repr])
@given(before=TAIL, path=TAIL, after=TAIL, scheme=st.sampled_from(["http", "https", "HTTPS"]))
@example(before="x", path="'", after='"', scheme="http")
def test_no_url_survives_beyond_its_host(
    spelling: Callable[[str], str], before: str, path: str, after: str, scheme: str
) -> None:
    url = f"{scheme}://user:SECRET@h.example/{path}SECRET?q=SECRET{after}SECRET"
    told = redact(f"{before}{spelling(url)} and more")
    assert "SECRET" not in told
    assert told.endswith(" and more")
    if ":" not in before:  # else what stands before may begin a URL itself, and the rest is cut down with that
        assert "h.example" in told


@given(st.text())
def test_redact_never_raises_and_is_stable(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def record_of(message: str, *arguments: object, error: BaseException | None = None, **facts: Any) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("imgkeep.x", logging.INFO, __file__, 1, message, arguments, exc_info)
    vars(record).update(facts)
    return record


def test_text_record_is_one_line() -> None:
    line = RecordFormatter("text").format(
        record_of("two\nlines %s", "x\r\ny", reason="a\u2028b\x85c\x1b[0m", key=None, size=7)
    )
    assert len(line.splitlines()) == 1
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z info imgkeep\.x: two\\x0alines x\\x0d\\x0ay reason=", line)
    assert line.endswith("size=7")
    assert "key" not in line


def test_field_of_a_record_as_text_cannot_look_like_another() -> None:
    detail = 'which: "a.example/ status=200" \\'
    line = RecordFormatter("text").format(record_of("request", status=400, detail=detail, host="a.example"))
    assert line.endswith(r'request status=400 detail="which: \"a.example/ status=200\" \\" host=a.example')


def test_json_record_is_one_object() -> None:
    line = RecordFormatter("json").format(record_of("two\nlines", size=7, key=None, what={1, 2}))
    assert len(line.splitlines()) == 1
    facts = json.loads(line)
    assert facts | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "imgkeep.x",
        "message": "two\nlines",
        "size": 7,
        "key": None,
        "what": [1, 2],
    }


def raised(message: str) -> Exception:
    try:
        raise ValueError(message)  # noqa: TRY301 - for its traceback
    except ValueError as error:
        return error


@pytest.mark.parametrize("form", ["text", "json"])
def test_messages_fields_and_exceptions_hold_no_secret(form: str) -> None:
    url = "https://h.example/p/SECRET?t=SECRET"
    line = RecordFormatter(form).format(
        record_of("got %s", url, error=raised(f"SECRET of {url}"), reason=f"at {url}", stack_info=url)
    )
    assert "SECRET" not in line
    assert "ValueError" in line
    assert "in raised" in line


@asynccontextmanager
async def printing(stream: io.StringIO, settings: Log) -> AsyncIterator[None]:
    """As `logging_to`, which a program enters and leaves outside its loop."""
    manager = logging_to(stream, settings)
    await asyncio.to_thread(manager.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def unhurt() -> Iterator[None]:
    """Put back what `logging_to` sets for the whole process."""
    names = ("", "asyncio", "alembic", "aiohttp.client", "aiohttp.internal")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("unhurt")
def test_malformed_request_is_one_short_line_at_info(stream: io.StringIO) -> None:
    error = BadHttpMessage("Invalid:\n  b'GET /img?src=https://h.example/SECRET'")
    with logging_to(stream, Log()):
        logging.getLogger("aiohttp.server").error("Error handling request from %s", "1.2.3.4", exc_info=error)
        logging.getLogger("aiohttp.server").error("Unhandled exception", exc_info=ZeroDivisionError("SECRET"))
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" info aiohttp.server: malformed request")
    assert " error aiohttp.server: Unhandled exception error=ZeroDivisionError" in second
    assert "SECRET" not in second
    quiet = io.StringIO()
    with logging_to(quiet, Log(level="warning")):
        logging.getLogger("aiohttp.server").error("Error handling request from %s", "1.2.3.4", exc_info=error)
    assert quiet.getvalue() == ""


@pytest.mark.usefixtures("unhurt")
def test_exit_does_not_wait_for_a_stuck_log_reader() -> None:
    may_read, writing = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            may_read.wait()
            return super().write(text)

    start = time.monotonic()
    with logging_to(Stuck(), Log()):
        logging.getLogger("imgkeep.test").info("first")
        writing.wait()
    assert time.monotonic() - start < FLUSH_TIMEOUT_S + 1
    may_read.set()


@pytest.mark.usefixtures("unhurt")
def test_stuck_log_reader_blocks_no_request_and_fills_no_memory() -> None:
    may_read, writing = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            may_read.wait()
            return super().write(text)

    stream = Stuck()
    with logging_to(stream, Log()):
        log = logging.getLogger("imgkeep.test")
        log.info("first")
        writing.wait()
        for _ in range(QUEUE_RECORDS_MAX + 500):
            log.info("x")
        may_read.set()
    assert 0 < stream.getvalue().count("\n") <= QUEUE_RECORDS_MAX + 2


def values(page: bytes, name: str) -> dict[str, float]:
    """Read one metric: labels to value."""
    pattern = rf"^{name}(?:\{{(.*?)\}})? (\S+)$"
    return {labels: float(value) for labels, value in re.findall(pattern, page.decode(), re.MULTILINE)}


def test_every_metric_has_its_prefix_and_gauges_ask_when_looked_at() -> None:
    metrics = Metrics()
    number = 1
    metrics.watch("things", "Things", lambda: number)
    assert values(metrics.page(), "imgkeep_things") == {"": 1.0}
    number = 2
    assert values(metrics.page(), "imgkeep_things") == {"": 2.0}
    assert re.fullmatch(r"(?:(?:# (?:HELP|TYPE) )?imgkeep_.*\n)+", metrics.page().decode())


BAD_TARGETS = [
    "/img",
    "/img?src=",
    "/img?src=ftp://h.example/SECRETPATH",
    "/img?src=https://user:SECRETTOKEN@h.example/SECRETPATH",
    "/img?src=https%253A%252F%252Fh.example%252FSECRETPATH",
    "/img?src=https%3A%2F%2Fh.example%2FSECRETPATH&odd=SECRETTOKEN",
    "/img?src=https%3A%2F%2F10.0.0.1%2FSECRETPATH%3Ft%3DSECRETTOKEN",
    "/images/SECRETPATH",
    "/SECRETPATH?t=SECRETTOKEN",
]
BROKEN = [
    b"GET /img?src=https://h.example/SECRET PATH?t=SECRETTOKEN HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /img?src=https://h.example/SECRETPATH HTTP/9.9.9\r\nHost: x\r\n\r\n",
    b"GET /img?src=https://h.example/SECRETPATH HTTP/1.1\r\nHost: x\r\nReferer : https://h/SECRETTOKEN\r\n\r\n",
    b"G\x00T /img?src=https://h.example/SECRETPATH HTTP/1.1\r\n\r\n",
    b"GET /img?src=https://h.example/SECRETPATH" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.usefixtures("unhurt")
@pytest.mark.parametrize("form", ["text", "json"])
async def test_log_of_a_noisy_run_has_no_secret_and_adds_up(  # noqa: PLR0915 - one story
    start: Start, origin: FakeOrigin, stream: io.StringIO, form: Any
) -> None:
    async with printing(stream, Log(format=form)):
        logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)  # the test server's own, which `serve` has not
        imgkeep = await start()
        answers = []
        good = origin.gives("/SECRETPATH/a.png", png_of(100_000)) + "?t=SECRETTOKEN"
        for _ in range(3):
            answers.append(await ask(imgkeep, target_of(good), "Referer: https://h/SECRETTOKEN"))
            await fills_done(imgkeep)
        answers.append(await ask(imgkeep, target_of(good), "Range: bytes=0-9"))
        answers.append(await ask(imgkeep, target_of(good), method="HEAD"))
        answers.append(await ask(imgkeep, target_of(good), "If-None-Match: *"))
        dead = origin.url("/SECRETPATH/dead.png") + "?t=SECRETTOKEN"
        html = origin.gives("/SECRETPATH/html.png", b"<html>SECRETTOKEN") + "?t=SECRETTOKEN"
        answers.extend([await ask(imgkeep, target_of(url)) for url in (dead, dead, html)])
        answers.extend([await ask(imgkeep, target) for target in BAD_TARGETS])
        app = imgkeep.client.app
        assert app is not None
        app[SERVICES].image_service.identify = broken
        answers.append(await ask(imgkeep, target_of(good)))
        broken_answers = [await talk(port_of(imgkeep), data) for data in BROKEN]
        page = app[SERVICES].metrics.page()
        await imgkeep.client.close()
    lines = stream.getvalue()
    assert "SECRET" not in lines
    assert b"SECRET" not in page
    for answer in answers:
        assert "SECRET" not in str(answer.headers)
        assert b"SECRET" not in answer.body or answer.status < 400
    assert all(answer.startswith(b"HTTP/1.0 400 ") for answer in broken_answers), broken_answers
    answers.extend(split(answer) for answer in broken_answers)
    # The counters.
    statuses: dict[str, float] = {}
    for labels, value in values(page, "imgkeep_requests_total").items():
        status = labels.partition('status="')[2].rstrip('"')
        statuses[status] = statuses.get(status, 0) + value
    assert statuses == {str(a.status): sum(b.status == a.status for b in answers) for a in answers}
    assert sum(values(page, "imgkeep_request_seconds_count").values()) == len(answers)
    assert values(page, "imgkeep_sent_bytes_total") == {"": sum(len(answer.body) for answer in answers)}
    fills = values(page, "imgkeep_fills_total")
    assert fills == {
        'outcome="stored",provider="other"': 1,
        'outcome="source_not_found",provider="other"': 1,
        'outcome="not_an_image",provider="other"': 1,
    }
    assert sum(values(page, "imgkeep_origin_requests_total").values()) == len(origin.seen) == 3
    assert values(page, "imgkeep_stored_bytes_total") == {"": 100_000}
    assert values(page, "imgkeep_fills_in_flight") == {"": 0}
    # One record a request, with all its facts; one line a record.
    if form == "json":
        records = [json.loads(line) for line in lines.splitlines()]
        access = [record for record in records if record["logger"] == "imgkeep.access"]
        assert len(access) == len(answers)
        for record, answer in zip(access, answers, strict=True):
            told = FAILURE_FIELDS if record["status"] >= 400 else set()
            assert record.keys() == ACCESS_FIELDS | told | {"time", "level", "logger", "message"}
            assert (record["status"], record["bytes"]) == (answer.status, len(answer.body))
            assert record["client"] == "127.0.0.1"
            assert record["ms"] >= 0
        assert [record["outcome"] for record in access[:6]] == ["stored", "hit", "hit", "hit", "hit", "hit"]
        assert len({record["key"] for record in access[:6]}) == 1
        assert all(re.fullmatch("[0-9a-f]{64}", record["key"]) for record in access[:9])
        malformed = [record for record in records if record["logger"] == "aiohttp.server"]
        assert [(record["level"], record["message"]) for record in malformed] == [("info", "malformed request")] * len(
            malformed
        )
        assert len(malformed) <= len(BROKEN)


def broken(source: object) -> Any:
    raise ZeroDivisionError(source)


@pytest.mark.usefixtures("unhurt")
async def test_failure_record_names_its_subject(start: Start, origin: FakeOrigin, stream: io.StringIO) -> None:
    async with printing(stream, Log(format="json")):
        imgkeep = await start()
        page = origin.gives("/page.png", b"<html>")
        await imgkeep.img(f"{page}?sig=SECRET")
        await imgkeep.client.post("/api/save-image", json={"url": f"{page}?sig=SECRET"})
        submitted = await imgkeep.client.post("/api/save-images", json={"urls": [page, "nonsense"], "wait": True})
        assert (await submitted.json())["failed"] == 2
    text = stream.getvalue()
    assert "SECRET" not in text
    records = [json.loads(line) for line in text.splitlines()]
    shown, saved = [record for record in records if record.get("outcome") == "not_an_image"]
    for record in (shown, saved):
        assert (record["host"], record["provider"]) == ("127.0.0.1", None)
        assert "image" in record["detail"]
        assert len(record["key"]) == 64
    (failed,) = [record for record in records if record["message"] == "job link failed"]
    assert (failed["host"], failed["code"], failed["number"], len(failed["key"])) == (
        "127.0.0.1",
        "not_an_image",
        0,
        64,
    )
    (unusable,) = [record for record in records if record["message"] == "job has links that cannot be used"]
    assert unusable["links"] == 1


@pytest.mark.usefixtures("unhurt")
async def test_access_records_can_be_switched_off(start: Start, stream: io.StringIO) -> None:
    async with printing(stream, Log()):
        imgkeep = await start(log={"access": False})
        assert (await ask(imgkeep, "/api")).status == 200
    assert "imgkeep.access" not in stream.getvalue()


@pytest.mark.usefixtures("unhurt")
@pytest.mark.parametrize(("level", "told"), [("info", ["/api"]), ("debug", ["/healthz", "/readyz", "/api"])])
async def test_probes_are_recorded_for_debugging_only(
    start: Start, stream: io.StringIO, level: Literal["info", "debug"], told: list[str]
) -> None:
    async with printing(stream, Log(level=level, format="json")):
        imgkeep = await start()
        for path in ("/healthz", "/readyz", "/api"):
            assert (await ask(imgkeep, path)).status == 200
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["route"] for record in records if record["logger"] == "imgkeep.access"] == told


def test_counters_of_workers_are_added_and_shared_gauges_are_not() -> None:
    workers = [Metrics(), Metrics()]
    for number, each in enumerate(workers):
        each.watch("in_flight", "Each has its part", lambda: 2.0)
        each.watch("free_bytes", "All see the same", partial(float, 10 + number), shared=True)
        each.answered("/img", "hit", 200, 100, 0.002)
        each.fetched("200", 0.3)
    workers[1].answered("/img", "removed", 410, 0, 0.002)
    ended = Metrics()
    ended.answered("/img", "hit", 200, 100, 0.002)
    ended.watch("in_flight", "Each has its part", lambda: 5.0)
    left = workers[0].merge([ended.tell("1.2", lasting=True), ended.tell("1.4", lasting=True)])
    page = workers[0].sum_up([*(each.tell("0.1") for each in workers), left], workers=2, unresponsive=1).decode()
    lines = set(page.splitlines())
    assert {
        'imgkeep_requests_total{outcome="hit",route="/img",status="200"} 4.0',
        'imgkeep_requests_total{outcome="removed",route="/img",status="410"} 1.0',
        "imgkeep_sent_bytes_total 400.0",
        'imgkeep_request_seconds_bucket{le="0.005",route="/img"} 5.0',
        'imgkeep_request_seconds_count{route="/img"} 5.0',
        'imgkeep_origin_requests_total{outcome="200"} 2.0',
        "imgkeep_origin_head_seconds_count 2.0",
        "imgkeep_origin_head_seconds_sum 0.6",
        "imgkeep_in_flight 4.0",
        "imgkeep_free_bytes 11.0",
        "imgkeep_workers_counted 2.0",
        "imgkeep_workers_unresponsive 1.0",
    } <= lines
    assert len(lines) == len(page.splitlines())
