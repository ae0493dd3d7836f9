"""The client of a bucket on a server as strict as the documentation of Google Cloud Storage."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from yarl import URL

from imgkeep.storage.bucket.errors import AlreadyThere, BucketError
from imgkeep.storage.bucket.live_check import check_bucket
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.memory import MemorySpool
from tests.support.gcs.opened import FIELDS, NAME, PATH, opening, read
from tests.support.gcs.strict_server import PREFIX
from tests.support.loopback import HOST
from tests.support.s3.gate import Gate
from tests.support.s3.misbehaving import only
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgkeep.storage.gcs import GcsClient
    from tests.support.gcs.strict_server import StrictGcs

PORTAL = b"<html><title>Sign in to the network</title></html>"

CALLS: dict[str, Callable[[GcsClient], Awaitable[object]]] = {
    "get": lambda client: client.get(PATH),
    "range": lambda client: client.get(PATH, start=1, end=2),
    "stat": lambda client: client.stat(PATH),
    "put": lambda client: client.put_bytes(PATH, b"new", FIELDS),
    "delete": lambda client: client.delete(PATH),
    "list": lambda client: client.has_any("v1/"),
    "quarantine": lambda client: client.quarantine(PATH, "1"),
}


@pytest.fixture
async def client(strict_gcs: StrictGcs) -> AsyncIterator[GcsClient]:
    del strict_gcs  # for its address
    async with opening() as client:
        yield client


@pytest.fixture
async def gate(strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    """Give a gate before the bucket; tokens come past it."""
    gate = Gate(HOST, strict_gcs.port)
    await gate.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gate.endpoint)
    yield gate
    await gate.stop()


# --- requests


async def test_object_has_bytes_and_fields(client: GcsClient, strict_gcs: StrictGcs) -> None:
    await client.put_bytes(PATH, b"0123456789", FIELDS)
    assert strict_gcs.objects[NAME].data == b"0123456789"
    assert strict_gcs.objects[NAME].metadata == {
        "contentType": "image/png",
        "cacheControl": "no-store",
        "contentDisposition": "attachment",
    }
    assert [await read(client), await read(client, start=3), await read(client, start=3, end=5)] == [
        b"0123456789",
        b"3456789",
        b"34",
    ]
    stat = await client.stat(PATH)
    assert stat is not None
    assert (stat.size, stat.etag) == (10, str(strict_gcs.objects[NAME].generation))


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
async def test_draft_is_sent_whole_with_its_size(client: GcsClient, strict_gcs: StrictGcs, size: int) -> None:
    body = random.Random(size).randbytes(size)
    draft = await MemorySpool(size).begin(size)
    await draft.write(body)
    await client.put_draft(PATH, draft, FIELDS)
    await draft.aclose()
    assert strict_gcs.objects[NAME].data == body


async def test_miss_costs_one_request(client: GcsClient, strict_gcs: StrictGcs) -> None:
    await read(client)
    before = len(strict_gcs.seen)
    assert await client.get(PATH) is None
    assert await client.stat(PATH) is None
    await client.delete(PATH)
    assert len(strict_gcs.seen) == before + 3


async def test_walk_reads_all_pages(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.page_size = 2
    for number in range(5):
        strict_gcs.store(f"{PREFIX}/v1/x/{number}", bytes(number))
    strict_gcs.store(f"{PREFIX}/v1/xy", b"")
    assert [found async for found in client.walk("v1/x")] == [(f"v1/x/{number}", number) for number in range(5)]
    assert await client.has_any("v1/x/")
    assert not await client.has_any("v1/z")


async def test_endless_list_is_a_fault(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.page_size = 1
    strict_gcs.is_forgetful = True
    for number in range(3):
        strict_gcs.store(f"{PREFIX}/v1/x/{number}", b"")
    with pytest.raises(BucketError, match="does not speak the API"):
        _ = [found async for found in client.walk("v1/x")]


async def test_endless_copy_is_a_fault(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.rewrite_steps = 1000
    stored = strict_gcs.store(NAME, b"body")
    with pytest.raises(BucketError, match="does not speak the API"):
        await client.quarantine(PATH, str(stored.generation))
    assert set(strict_gcs.objects) == {NAME}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"x":' * 100_000,
        b'{"name": "\xff", "size": "1", "generation": "1"}',
        b'{"name": "another", "size": "1", "generation": "1"}',
        b'{"name": "pre/v1/objects/00/a b%c.png", "size": "-1", "generation": "1"}',
        b'{"name": "pre/v1/objects/00/a b%c.png", "size": "1\\n", "generation": "1"}',
        b'{"name": "pre/v1/objects/00/a b%c.png", "size": "' + b"9" * 5000 + b'", "generation": "1"}',
        b'{"name": "pre/v1/objects/00/a b%c.png", "size": 1, "generation": "1"}',
        b'{"name": "pre/v1/objects/00/a b%c.png", "size": "1", "generation": "one"}',
    ],
)
async def test_metadata_of_another_form_is_a_fault(gate: Gate, answer: bytes) -> None:
    async with opening() as client:
        await gate.answer(200, {"Content-Type": "application/json"}, answer)
        for call in (client.stat(PATH), client.put_bytes(PATH, b"1", FIELDS)):
            with pytest.raises(BucketError, match="does not speak the API"):
                await call


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-goog-generation", None),
        ("x-goog-generation", "one"),
        ("x-goog-hash", None),
        ("x-goog-hash", "sha1=AAAA"),
        ("Content-Range", "bytes 2-3/4"),
        ("Content-Range", "bytes 0-3/4"),
        ("Content-Range", None),
    ],
)
async def test_head_of_another_form_is_a_fault(gate: Gate, strict_gcs: StrictGcs, name: str, value: str | None) -> None:
    strict_gcs.store(NAME, b"body")
    part: dict[str, Any] = {"start": 1, "end": 3} if name == "Content-Range" else {}
    async with opening() as client:
        await (gate.strip_header(name) if value is None else gate.set_header(name, value))
        with pytest.raises(BucketError, match="does not speak the API"):
            await read(client, **part)


@pytest.mark.parametrize("steps", [1, 3])
async def test_quarantine_moves_the_version_that_was_read(client: GcsClient, strict_gcs: StrictGcs, steps: int) -> None:
    strict_gcs.rewrite_steps = steps
    old = strict_gcs.store(NAME, b"old").generation
    new = strict_gcs.store(NAME, b"new", contentType="image/png").generation
    await client.quarantine(PATH, str(old))
    assert set(strict_gcs.objects) == {NAME}
    await client.quarantine(PATH, str(new))
    ((name, moved),) = strict_gcs.objects.items()
    assert name.startswith(f"{PREFIX}/damaged/a b%c.png.")
    assert (moved.data, moved.metadata) == (b"new", {"contentType": "image/png"})


async def test_conditions_of_a_quarantine_hold_on_the_server(gate: Gate, strict_gcs: StrictGcs) -> None:
    bad = strict_gcs.store(NAME, b"bad").generation
    async with opening() as client:
        await gate.hang(match=only("POST", "/rewriteTo/"), times=1)
        moving = asyncio.create_task(client.quarantine(PATH, str(bad)))
        await gate.until_seen("POST", "/rewriteTo/")
        moving.cancel()
        await asyncio.wait([moving])
        strict_gcs.store(NAME, b"good")
        assert not await client._copy(PATH, "damaged/x", str(bad))
        await client._delete(PATH, {"ifGenerationMatch": str(bad)})
    assert {name: found.data for name, found in strict_gcs.objects.items()} == {NAME: b"good"}


async def test_conditional_put_leaves_what_is_there(client: GcsClient, strict_gcs: StrictGcs) -> None:
    await client.put_bytes(PATH, b"first", FIELDS, only_if_absent=True)
    with pytest.raises(AlreadyThere):
        await client.put_bytes(PATH, b"second", FIELDS, only_if_absent=True)
    await client.probe_features(PATH)
    assert client.features.conditional_put
    assert strict_gcs.objects[NAME].data == b"first"


async def test_diagnosis_finds_no_fault(client: GcsClient, strict_gcs: StrictGcs) -> None:
    store = BucketStore(client)
    steps = [step async for step in check_bucket(store, public_url=store.public_url)]
    assert [step for step in steps if step.error] == []
    assert {"presign", "public", "conditional-put", "copy"} <= {step.name for step in steps}
    assert strict_gcs.objects == {}


# --- failures


async def faults_of_all_calls(client: GcsClient) -> dict[str, BucketError]:
    """Make all calls at once; each has to fail."""
    found = await asyncio.gather(*(call(client) for call in CALLS.values()), return_exceptions=True)
    faults = {name: fault for name, fault in zip(CALLS, found, strict=True) if isinstance(fault, BucketError)}
    assert set(faults) == set(CALLS)
    return faults


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (200, {"Content-Type": "text/html"}, "does not speak the API"),
        (302, {"Location": "http://portal.example/"}, "answers 302"),
        (404, {"Content-Type": "text/html"}, "answers 404"),
    ],
)
async def test_page_of_a_portal_or_proxy_is_a_fault(
    gate: Gate, status: int, headers: dict[str, str], message: str
) -> None:
    async with opening() as client:
        await gate.answer(status, headers, PORTAL)
        for fault in (await faults_of_all_calls(client)).values():
            assert message in str(fault)


@pytest.mark.parametrize("body", [b'{"error":' * 7000, b'{"error": {"message": "\xff"}}', b"[]", b'{"error": "no"}'])
async def test_error_of_another_form_has_the_code_of_its_status(gate: Gate, body: bytes) -> None:
    async with opening() as client:
        await gate.answer(403, {"Content-Type": "application/json"}, body)
        for fault in (await faults_of_all_calls(client)).values():
            assert fault.error_code == "forbidden"


async def test_404_of_an_object_that_is_listed_is_a_fault(gate: Gate, strict_gcs: StrictGcs) -> None:
    strict_gcs.store(NAME, b"body")
    async with opening() as client:
        await gate.answer(404, {"Content-Type": "text/html"}, PORTAL, match=only("GET", "/download/"))
        with pytest.raises(BucketError, match="answers 404"):
            await client.get(PATH)


async def test_missing_bucket_is_a_fault(strict_gcs: StrictGcs) -> None:
    async with opening("another-bucket") as client:
        for fault in (await faults_of_all_calls(client)).values():
            assert (fault.error_code, fault.general) == ("noSuchBucket", True)
            assert fault.remedy == "create the bucket, or correct its name in store.url"
            assert fault.place == f"bucket another-bucket at {HOST}:{strict_gcs.port}"


@pytest.mark.parametrize(
    ("call", "permission"),
    [("get", "get"), ("stat", "get"), ("put", "create"), ("put", "delete"), ("delete", "delete"), ("list", "list")],
)
async def test_remedy_names_the_permission_that_is_missing(
    client: GcsClient, strict_gcs: StrictGcs, call: str, permission: str
) -> None:
    strict_gcs.store(NAME, b"body")
    strict_gcs.denied = {f"storage.objects.{permission}"}
    with pytest.raises(BucketError) as caught:
        await CALLS[call](client)
    assert (caught.value.error_code, caught.value.general) == ("forbidden", False)
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(f"grant storage.objects.{permission} on the bucket; the role Storage Object")


@pytest.mark.parametrize("call", ["put", "delete"])
async def test_retention_is_about_one_object(client: GcsClient, strict_gcs: StrictGcs, call: str) -> None:
    strict_gcs.store(NAME, b"body")
    strict_gcs.under_retention = True
    with pytest.raises(BucketError) as caught:
        await CALLS[call](client)
    assert (caught.value.error_code, caught.value.general) == ("retentionPolicyNotMet", False)
    assert "retention policy" in str(caught.value.remedy)


async def test_upload_with_another_checksum_is_a_fault(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.lies_about_md5 = True
    with pytest.raises(BucketError, match="does not have what it said it took"):
        await client.put_bytes(PATH, b"body", FIELDS)


async def test_upload_that_is_damaged_is_refused(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.damages_uploads = True
    with pytest.raises(BucketError, match="answers invalid"):
        await client.put_bytes(PATH, b"body", FIELDS)
    assert strict_gcs.objects == {}


async def test_upload_that_is_cut_stores_nothing(gate: Gate, strict_gcs: StrictGcs) -> None:
    body = bytes(1_000_000)
    draft = await MemorySpool(len(body)).begin(len(body))
    await draft.write(body)
    async with opening() as client:
        await gate.reset_mid_body(300_000, match=only("POST", "/upload/"))
        with pytest.raises(BucketError, match="cannot be reached"):
            await client.put_draft(PATH, draft, FIELDS)
        assert strict_gcs.objects == {}
        await gate.open()
        await client.put_draft(PATH, draft, FIELDS)
    await draft.aclose()
    assert strict_gcs.objects[NAME].data == body


async def test_limit_on_writes_of_one_object_fails_only_other_bytes(strict_gcs: StrictGcs) -> None:
    strict_gcs.store(NAME, b"body")
    strict_gcs.limited = {NAME}
    async with opening(timeout_s=1) as client:
        await client.put_bytes(PATH, b"body", FIELDS)
        with pytest.raises(BucketError) as caught:
            await client.put_bytes(PATH, b"others", FIELDS)
        assert (caught.value.error_code, caught.value.general) == ("rateLimitExceeded", False)
        await client.probe_features(PATH)
        assert client.features.conditional_put


async def test_write_is_repeated_when_the_limit_allows_it(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.store(NAME, b"body")
    strict_gcs.limited = {NAME}
    putting = asyncio.create_task(client.put_bytes(PATH, b"new", FIELDS))
    await until(lambda: strict_gcs.count("GET", "/o/pre") == 1)
    strict_gcs.limited = set()
    await putting
    assert strict_gcs.objects[NAME].data == b"new"


async def test_object_that_is_transcoded_is_a_fault(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.store(NAME, b"body")
    strict_gcs.compressed = {NAME}
    with pytest.raises(BucketError, match="does not return the bytes that are stored") as caught:
        await client.get(PATH)
    assert not caught.value.general


async def test_version_that_changed_is_a_fault(client: GcsClient, strict_gcs: StrictGcs) -> None:
    old = strict_gcs.store(NAME, b"old").generation
    strict_gcs.store(NAME, b"new")
    with pytest.raises(BucketError, match="changed during a read") as caught:
        await client.get(PATH, etag=str(old))
    assert not caught.value.general


async def test_metrics_have_the_names_of_operations(strict_gcs: StrictGcs) -> None:
    found: list[tuple[str, str]] = []
    async with opening(observe=lambda operation, outcome, _: found.append((operation, outcome))) as client:
        for call in CALLS.values():
            await call(client)
        strict_gcs.denied = {"storage.objects.get"}
        with pytest.raises(BucketError):
            await client.get(PATH)
    assert {operation for operation, _ in found} == {
        "get_object",
        "head_object",
        "put_object",
        "delete_object",
        "list_objects",
    }
    assert found[-1] == ("get_object", "forbidden")


# --- links


async def follow(link: str, method: str = "GET") -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, URL(link, encoded=True)) as response,
    ):
        return response.status, await response.read()


async def test_signed_link_leads_to_the_object(client: GcsClient, strict_gcs: StrictGcs) -> None:
    path = "v1/records/00/a b%c+d'e.json"
    strict_gcs.store(f"{PREFIX}/{path}", b"body")
    link, life_s = await client.presign(path, ttl_s=600, head=False)
    assert life_s == 600
    assert await follow(link) == (200, b"body")
    assert (await follow(link, "HEAD"))[0] == 403
    head, _ = await client.presign(path, ttl_s=600, head=True)
    assert (await follow(head, "HEAD"))[0] == 200
    assert (await follow(link.replace("Expires=600", "Expires=601")))[0] == 403
    assert (await follow(client.public_url(path)))[0] == 403


async def test_signed_link_lives_seven_days_at_most(client: GcsClient, strict_gcs: StrictGcs) -> None:
    strict_gcs.store(NAME, b"body")
    link, life_s = await client.presign(PATH, ttl_s=10_000_000, head=False)
    assert life_s == 604_800
    assert await follow(link) == (200, b"body")


async def test_signing_with_a_key_needs_no_request(client: GcsClient, strict_gcs: StrictGcs) -> None:
    await client.presign(PATH, ttl_s=600, head=False)
    assert strict_gcs.seen == []
