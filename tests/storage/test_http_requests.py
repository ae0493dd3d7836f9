"""Requests to the HTTP API of a service: attempts, limits, proxies, and what a misbehaving server causes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.storage.bucket.body import PIECE_BYTES, DraftPart
from imgkeep.storage.bucket.errors import BROKEN_OFF, SILENT, BucketError
from imgkeep.storage.bucket.http_requests import ERROR_BYTES_MAX, HttpRequest, HttpRequests, translate_http_error
from imgkeep.storage.bucket.request_limits import REQUESTS_MAX, RequestLimits
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping
    from pathlib import Path

    from imgkeep.storage.interfaces import Draft
    from tests.support.origins import Exchange, FakeOrigin

SIZE = 3 * PIECE_BYTES
ANSWER_BYTES_MAX = 1000
LONG_S = 10
"""Timeout of a healthy server on a machine that is busy with other tests."""


class Bucket:
    """Requests to one path of an origin, and the refusals that they met."""

    def __init__(self, origin: FakeOrigin, timeout_s: float) -> None:
        self.url = origin.url("/bucket/a")
        self.refused: list[tuple[int, bytes]] = []
        self.outcomes: list[str] = []
        self.made = 0
        self.limits = RequestLimits(
            "bucket",
            timeout_s=timeout_s,
            observe=lambda _operation, outcome, _seconds: self.outcomes.append(outcome),
            translate=partial(translate_http_error, foreign="another server"),
            answers=(),
        )
        self.requests = HttpRequests(self.limits, self._refuse)

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes) -> BucketError:
        del headers
        self.refused.append((status, body))
        return BucketError(f"the bucket answers {status}", str(status))

    async def get(self) -> bytes:
        _, data = await self.requests.call("get", self._make_get, ANSWER_BYTES_MAX)
        return data

    async def _make_get(self) -> HttpRequest:
        self.made += 1
        return HttpRequest("GET", self.url, {"Authorization": "signed"})

    async def put(self, part: DraftPart) -> None:
        async def make() -> HttpRequest:
            self.made += 1
            return HttpRequest("PUT", self.url, {"Content-Length": str(SIZE)}, part)

        await self.requests.call("put", make, ANSWER_BYTES_MAX, part)

    def assert_free(self) -> None:
        assert self.limits._slots._value == REQUESTS_MAX


@asynccontextmanager
async def opened(origin: FakeOrigin, timeout_s: float = LONG_S) -> AsyncGenerator[Bucket]:
    bucket = Bucket(origin, timeout_s)
    await bucket.requests.open()
    yield bucket
    await bucket.requests.aclose()
    bucket.assert_free()


@pytest.fixture
async def bucket(origin: FakeOrigin) -> AsyncIterator[Bucket]:
    async with opened(origin) as bucket:
        yield bucket


@pytest.fixture
async def draft() -> AsyncIterator[Draft]:
    draft = await MemorySpool(SIZE).begin(SIZE)
    await draft.write(bytes(SIZE))
    yield draft
    await draft.aclose()


# --- attempts


async def test_passing_failure_is_tried_once_more(bucket: Bucket, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(b"data", status="200 OK" if exchange.number else "503 Service Unavailable")

    origin.on("/bucket/a", script)
    assert await bucket.get() == b"data"
    assert (bucket.made, bucket.refused, bucket.outcomes) == (2, [], ["ok"])


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (404, 1), (412, 1), (429, 2), (500, 2), (504, 2)])
async def test_refusal_ends_after_its_attempts(bucket: Bucket, origin: FakeOrigin, status: int, attempts: int) -> None:
    origin.gives("/bucket/a", b"why", status=f"{status} No")
    with pytest.raises(BucketError, match=str(status)):
        await bucket.get()
    assert (bucket.made, bucket.refused, bucket.outcomes) == (attempts, [(status, b"why")], [str(status)])


async def test_second_attempt_sends_the_whole_draft(bucket: Bucket, origin: FakeOrigin, draft: Draft) -> None:
    received: list[int] = []

    async def script(exchange: Exchange) -> None:
        assert exchange.reader is not None
        data = await exchange.reader.readexactly(SIZE if exchange.number else 1000)
        received.append(len(data))
        if not exchange.number:
            exchange.reset()
            return
        await exchange.answer(b"")

    origin.on("/bucket/a", script)
    await bucket.put(DraftPart(draft, 0, SIZE))
    assert received == [1000, SIZE]


async def test_draft_that_grows_shorter_is_not_sent_again(bucket: Bucket, origin: FakeOrigin, draft: Draft) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.gone()

    origin.on("/bucket/a", script)
    with pytest.raises(StorageError, match="shorter than before") as fault:
        await bucket.put(DraftPart(draft, PIECE_BYTES, SIZE + PIECE_BYTES))
    assert not isinstance(fault.value, BucketError)
    assert (bucket.made, bucket.outcomes) == (1, ["draft"])


class SlowDraft(DraftPart):
    """A part whose pieces come with delays."""

    async def _read(self, offset: int) -> bytes:
        await asyncio.sleep(0.2)
        return await super()._read(offset)


async def test_upload_that_makes_progress_has_more_time(origin: FakeOrigin, draft: Draft) -> None:
    async def script(exchange: Exchange) -> None:
        assert exchange.reader is not None
        await exchange.reader.readexactly(SIZE)
        await exchange.answer(b"")

    origin.on("/bucket/a", script)
    async with opened(origin, timeout_s=0.5) as bucket:
        await bucket.put(SlowDraft(draft, 0, SIZE))


# --- what a request is signed with


async def test_request_that_cannot_be_signed_is_not_sent(bucket: Bucket, origin: FakeOrigin) -> None:
    async def make() -> HttpRequest:
        raise BucketError("there are no credentials")

    with pytest.raises(BucketError, match="no credentials"):
        await bucket.requests.call("get", make, ANSWER_BYTES_MAX)
    assert origin.seen == []


async def test_signing_that_hangs_has_the_timeout_too(origin: FakeOrigin) -> None:
    async def make() -> HttpRequest:
        await asyncio.Event().wait()
        raise AssertionError

    async with opened(origin, timeout_s=0.1) as bucket:
        with pytest.raises(BucketError, match=SILENT):
            await bucket.requests.call("get", make, ANSWER_BYTES_MAX)


async def test_netrc_changes_no_request(
    bucket: Bucket, origin: FakeOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login name password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    origin.gives("/bucket/a", b"data")
    assert await bucket.get() == b"data"
    assert origin.seen[0].headers["authorization"] == "signed"


async def test_proxy_of_the_environment_is_used(
    bucket: Bucket, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://name:word@127.0.0.1:{origin.port}")
    bucket.url = "http://storage.test/bucket/a"
    origin.gives(bucket.url, b"by proxy")
    assert await bucket.get() == b"by proxy"
    assert origin.seen[0].headers["proxy-authorization"].startswith("Basic ")


async def test_exception_from_the_proxy_is_respected(
    bucket: Bucket, origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    origin.gives("/bucket/a", b"direct")
    assert await bucket.get() == b"direct"


# --- servers that misbehave


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nno field\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnumber\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\nab",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=lambda answer: answer[:40].decode("latin-1"),
)
async def test_answer_that_is_no_http_is_a_fault(bucket: Bucket, origin: FakeOrigin, answer: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer)
        exchange.finish()

    origin.on("/bucket/a", script)
    with pytest.raises(BucketError):
        await bucket.get()


async def test_cut_error_counts_by_its_status(bucket: Bucket, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(b"<Error><Code>Ac", status="403 Forbidden", length=1000)
        exchange.finish()

    origin.on("/bucket/a", script)
    with pytest.raises(BucketError, match="403"):
        await bucket.get()
    assert bucket.refused == [(403, b"<Error><Code>Ac")]


async def test_error_without_end_is_read_to_its_limit(bucket: Bucket, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Transfer-Encoding: chunked", status="403 Forbidden")
        while True:
            await exchange.send(b"10000\r\n" + bytes(65_536) + b"\r\n")

    origin.on("/bucket/a", script)
    with pytest.raises(BucketError, match="403"):
        await bucket.get()
    assert bucket.refused == [(403, bytes(ERROR_BYTES_MAX))]


async def test_answer_without_end_is_read_to_its_limit(bucket: Bucket, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Transfer-Encoding: chunked")
        while True:
            await exchange.send(b"10000\r\n" + bytes(65_536) + b"\r\n")

    origin.on("/bucket/a", script)
    assert await bucket.get() == bytes(ANSWER_BYTES_MAX)


async def test_answer_before_the_end_of_an_upload_counts(bucket: Bucket, origin: FakeOrigin, draft: Draft) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(b"no", status="403 Forbidden")
        await exchange.gone()

    origin.on("/bucket/a", script)
    with pytest.raises(BucketError, match="403"):
        await bucket.put(DraftPart(draft, 0, SIZE))
    assert bucket.made == 1


async def test_redirect_is_not_followed(bucket: Bucket, origin: FakeOrigin) -> None:
    origin.gives("/bucket/a", b"", status="307 Temporary Redirect", headers={"Location": "/elsewhere"})
    origin.gives("/elsewhere", b"data")
    with pytest.raises(BucketError, match="307"):
        await bucket.get()
    assert origin.asked("/elsewhere") == 0


async def test_cookie_is_not_sent_back_and_nothing_is_decompressed(bucket: Bucket, origin: FakeOrigin) -> None:
    origin.gives("/bucket/a", b"data", headers={"Set-Cookie": "a=b", "Content-Encoding": "gzip"})
    assert [await bucket.get() for _ in range(2)] == [b"data", b"data"]
    assert "cookie" not in origin.seen[1].headers
    assert origin.connections == 1


# --- slots and connections


async def test_response_has_its_slot_until_it_is_closed(bucket: Bucket, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 10")
        await exchange.send(b"half")
        await exchange.gone()

    origin.on("/bucket/a", script)
    response = await bucket.requests.open_response("get", bucket._make_get)
    assert await response.stream.read(10) == b"half"
    assert bucket.limits._slots._value == REQUESTS_MAX - 1
    for _ in range(2):
        response.stream.close()
    bucket.assert_free()


async def test_cut_response_is_a_fault_and_frees_its_slot(bucket: Bucket, origin: FakeOrigin) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(b"half", length=10)
        exchange.finish()

    origin.on("/bucket/a", script)
    with pytest.raises(BucketError, match=BROKEN_OFF):
        await bucket.get()
    bucket.assert_free()


async def test_cancelled_wait_for_a_slot_takes_none(bucket: Bucket, origin: FakeOrigin) -> None:
    for _ in range(REQUESTS_MAX):
        await bucket.limits.acquire_slot()
    asking = asyncio.create_task(bucket.get())
    await asyncio.sleep(0)
    bucket.limits.release_slot()
    asking.cancel()  # at the moment at which it is given the slot
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert origin.seen == []
    for _ in range(REQUESTS_MAX - 1):
        bucket.limits.release_slot()
    bucket.assert_free()


async def test_closed_client_fails_and_sends_nothing(origin: FakeOrigin) -> None:
    async with opened(origin) as bucket:
        await bucket.requests.aclose()
        with pytest.raises(BucketError, match="closed"):
            await bucket.get()
    assert origin.seen == []
