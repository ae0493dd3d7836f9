"""
The matrix of faults of all remote stores: every call is a typed fault in time, and leaves nothing behind.

Each row is tried on each service, with all calls of a client at once.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, get_args

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.core.store_url import RemotePlace
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BROKEN_OFF, SILENT, UNREACHABLE, BucketError
from tests.support.bucket_backends import TIMEOUT_S, guard_of
from tests.support.remote_services import REFUSALS, SERVICES
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from imgkeep.storage.bucket.client import BucketClient
    from imgkeep.storage.interfaces import Draft
    from tests.support.bucket_backends import BucketBackend, Refusal
    from tests.support.s3.gate import Gate

SHORT_S = 0.3
"""Timeout of a client whose server does not answer."""
CALLS_TIMEOUT_S = 15
"""Timeout for all calls of a row, each of which makes a few requests, on a machine that is busy with other tests."""

BODY = random.Random(1).randbytes(100_000)
LARGE = random.Random(2).randbytes(2_000_000)
"""A body that is sent in pieces."""
OBJECT = f"v1/objects/00/{sha256(BODY).hexdigest()}.png"
OTHER = f"v1/objects/01/{'01' * 32}.png"
PNG = ObjectFields("image/png", "public")
PAGE = b"<html><title>Log in to use this network</title></html>"


@dataclass
class Calls:
    """Every call of a client, as a row makes them at once."""

    backend: BucketBackend
    draft: Draft
    etag: str = ""

    @property
    def client(self) -> BucketClient:
        return self.backend.store.client

    def all(self) -> dict[str, Callable[[], Awaitable[object]]]:
        return {
            "get": self.get,
            "stat": lambda: self.client.stat(OBJECT),
            "put_bytes": lambda: self.client.put_bytes(OTHER, b"other", PNG),
            "put_draft": lambda: self.client.put_draft(OTHER, self.draft, PNG),
            "delete": lambda: self.client.delete(OBJECT),
            "quarantine": lambda: self.client.quarantine(OBJECT, self.etag),
            "has_any": lambda: self.client.has_any("v1/objects/"),
            "walk": self.walk,
        }

    async def get(self) -> bytes | None:
        opened = await self.client.get(OBJECT)
        return None if opened is None else await opened.stream.read_all(len(BODY) + 1)

    async def walk(self) -> list[tuple[str, int]]:
        return [found async for found in self.client.walk("v1/objects")]


@pytest.fixture(scope="module", params=SERVICES)
def service_name(request: pytest.FixtureRequest) -> str:
    """Return the name of a service. All tests of one come after each other, so few processes start its server."""
    return str(request.param)


@pytest.fixture
async def backend(service_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BucketBackend]:
    service = SERVICES[service_name]
    async for backend in service.open(service.server, request, tmp_path):
        yield backend


@pytest.fixture
async def calls(backend: BucketBackend) -> AsyncIterator[Calls]:
    """Store an object, and write the draft of another."""
    client, draft = backend.store.client, await backend.store.spool.begin(len(LARGE))
    await client.put_bytes(OBJECT, BODY, PNG)
    await draft.write(LARGE)
    found = await client.stat(OBJECT)
    assert found is not None
    yield Calls(backend, draft, found.etag)
    await draft.aclose()


async def faults_of(
    calls: Calls, arrange: Callable[[Gate], Awaitable[None]], names: tuple[str, ...], timeout_s: float
) -> list[object]:
    """Arrange a fault, make the calls, and require that nothing is left of them; return what each raised or gave."""
    stored, running, limits = await calls.backend.stored(), asyncio.all_tasks(), guard_of(calls.client)
    limits.timeout_s, healthy_s = timeout_s, limits.timeout_s
    await arrange(calls.backend.gate)
    async with asyncio.timeout(CALLS_TIMEOUT_S):
        found = await asyncio.gather(*(calls.all()[name]() for name in names), return_exceptions=True)
    limits.timeout_s = healthy_s
    assert calls.backend.slots_taken == 0
    await calls.backend.gate.open()
    await until(lambda: asyncio.all_tasks() <= running | calls.backend.gate._tasks)
    assert await calls.backend.stored() == stored
    return list(found)


ALL = ("get", "stat", "put_bytes", "put_draft", "delete", "quarantine", "has_any", "walk")
READS = ("get",)


@dataclass(frozen=True)
class Row:
    """A fault, the calls that it concerns, and what they say."""

    arrange: Callable[[Gate], Awaitable[None]]
    calls: tuple[str, ...] = ALL
    says: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S


ROWS = {
    "refused": Row(lambda gate: gate.refuse(), says=(UNREACHABLE,)),
    "hung in connect": Row(lambda gate: gate.ignore(), says=(SILENT,), timeout_s=SHORT_S),
    "hung in the head": Row(lambda gate: gate.hang(), says=(SILENT,), timeout_s=SHORT_S),
    "hung in the body": Row(lambda gate: gate.stall(1), READS, says=(SILENT,), timeout_s=SHORT_S),
    "slow head": Row(lambda gate: gate.drip(0.05), says=(SILENT,), timeout_s=SHORT_S),
    "slow error": Row(lambda gate: gate.drip(0.05, status=403), says=(SILENT, UNREACHABLE), timeout_s=SHORT_S),
    "reset": Row(lambda gate: gate.reset(), says=(UNREACHABLE,)),
    "cut body": Row(lambda gate: gate.cut_body(50_000), READS, says=(BROKEN_OFF,)),
    "reset body": Row(lambda gate: gate.cut_body(50_000, reset=True), READS, says=(BROKEN_OFF,)),
    "cut upload": Row(lambda gate: gate.reset_mid_body(300_000), ("put_draft",), says=(UNREACHABLE,)),
    "portal": Row(lambda gate: gate.answer(200, {"Content-Type": "text/html"}, PAGE)),
    "portal by redirect": Row(lambda gate: gate.answer(302, {"Location": "http://127.0.0.1:9/login"})),
    "page that is missing": Row(lambda gate: gate.answer(404, {"Content-Type": "text/html"}, PAGE)),
    "empty answer": Row(lambda gate: gate.answer(200)),
    "not HTTP": Row(lambda gate: gate.answer(200, {"Content-Length": "-1"}, PAGE)),
}


@pytest.mark.parametrize("row", ROWS)
async def test_fault_is_typed_and_leaves_nothing(calls: Calls, row: str) -> None:
    fault = ROWS[row]
    for name, found in zip(
        fault.calls, await faults_of(calls, fault.arrange, fault.calls, fault.timeout_s), strict=True
    ):
        assert isinstance(found, BucketError), (name, found)
        assert not fault.says or str(found) in fault.says, (name, found)
        assert found.general or row == "page that is missing", name
    if row == "portal":
        assert calls.backend.store.client.answered_at == float("-inf"), "a portal's page proves no health"
    assert await calls.get() == BODY


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusal_is_typed_with_a_remedy(calls: Calls, service_name: str, name: str) -> None:
    service = SERVICES[service_name]
    if name in service.without:
        assert name not in service.refusals, service.without[name]
        return
    await check_refusal(calls, service.refusals[name])


async def test_refusals_that_one_service_alone_has_are_typed_with_a_remedy(calls: Calls, service_name: str) -> None:
    refusals = SERVICES[service_name].refusals
    for name in refusals.keys() - set(REFUSALS):
        await check_refusal(calls, refusals[name])


async def check_refusal(calls: Calls, refusal: Refusal) -> None:
    answer = refusal.answer
    found = await faults_of(calls, lambda gate: gate.answer(answer.status, answer.headers, answer.body), ALL, TIMEOUT_S)
    for call, fault in zip(ALL, found, strict=True):
        assert isinstance(fault, BucketError), (call, fault)
    for fault in (found[ALL.index(call)] for call in ("get", "put_bytes", "put_draft", "walk")):
        assert isinstance(fault, BucketError)
        assert (fault.error_code, fault.general) == (refusal.error_code, refusal.general)
        assert refusal.remedy in (fault.remedy or "")


@pytest.mark.parametrize("state", ["head", "body", "upload"])
async def test_cancelled_call_leaves_nothing(calls: Calls, state: str) -> None:
    running, gate = asyncio.all_tasks(), calls.backend.gate
    if state == "body":
        await gate.stall(1, match=lambda method, _: method == "GET")
    else:
        await gate.hang()
    names = {"head": ALL, "body": READS, "upload": ("put_draft",)}[state]
    tasks = [asyncio.ensure_future(calls.all()[name]()) for name in names]
    before = len(gate.seen)
    await until(lambda: len(gate.seen) > before or calls.backend.slots_taken)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * len(names)
    assert calls.backend.slots_taken == 0
    await gate.open()
    await until(lambda: asyncio.all_tasks() <= running | gate._tasks)
    assert await calls.get() == BODY


class FailingDraft:
    """A draft on a disk that fails after a while."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.size = draft.size
        self.digest = draft.digest
        self.write, self.check, self.check_blocking = draft.write, draft.check, draft.check_blocking
        self.share_file, self.aclose = draft.share_file, draft.aclose

    async def read(self, offset: int, size: int) -> bytes:
        if offset + size > 500_000:
            raise StorageError("the disk failed")
        return await self._draft.read(offset, size)


async def test_disk_that_fails_during_an_upload_is_no_fault_of_the_bucket(calls: Calls) -> None:
    with pytest.raises(StorageError, match="the disk failed") as fault:
        await calls.client.put_draft(OTHER, FailingDraft(calls.draft), PNG)
    assert not isinstance(fault.value, BucketError)
    assert calls.backend.slots_taken == 0
    assert list(await calls.backend.stored()) == [OBJECT]


# --- the table


def test_table_covers_every_service_and_refusal() -> None:
    assert {service.place for service in SERVICES.values()} == set(get_args(RemotePlace))
    for name, service in SERVICES.items():
        assert set(REFUSALS) <= {*service.refusals, *service.without}, name
