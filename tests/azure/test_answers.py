"""Odd answers of a container, and answers in its place: nothing is believed, nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest

from imgkeep.storage.azure import listing
from imgkeep.storage.azure.errors import make_error
from imgkeep.storage.azure.listing import read_page
from imgkeep.storage.azure.settings import AccountKey, MachineIdentity, SasToken
from imgkeep.storage.azure.xml_elements import read_elements
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import NOT_TAKEN, BucketError
from imgkeep.storage.memory import MemorySpool
from tests.support.azure.backends import azure_client
from tests.support.s3.gate import Gate
from tests.support.s3.misbehaving import only
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.storage.azure import AzureClient
    from imgkeep.storage.azure.settings import Credentials
    from tests.support.azure.azurite import Azurite

IMAGE = ObjectFields("image/png")
PATH = "v1/objects/00/0000.png"
OURS = {"x-ms-request-id": "1", "Content-Type": "application/xml"}


@pytest.fixture
async def gate(azurite: Azurite) -> AsyncIterator[Gate]:
    gate = Gate("127.0.0.1", azurite.port)
    await gate.start()
    yield gate
    await gate.stop()


@pytest.fixture
async def client(azurite: Azurite, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AzureClient]:
    async with azure_client(azurite.through(gate.endpoint), monkeypatch) as client:
        yield client


async def etag_of(client: AzureClient, path: str = PATH) -> str:
    status = await client.stat(path)
    assert status is not None
    return status.etag


# --- uploads


async def test_upload_whose_checksum_differs_is_not_believed(client: AzureClient, gate: Gate) -> None:
    await gate.set_header("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==", match=only("PUT"))
    with pytest.raises(BucketError, match=NOT_TAKEN):
        await client.put_bytes(PATH, b"image", IMAGE)
    draft = await MemorySpool(20_000_000).begin(17_000_000)
    await draft.write(bytes(17_000_000))
    with pytest.raises(BucketError, match=NOT_TAKEN):
        await client.put_draft(f"{PATH}2", draft, IMAGE)


async def test_upload_without_a_checksum_is_looked_at(client: AzureClient, gate: Gate) -> None:
    await gate.strip_header("Content-MD5", match=only("PUT"))
    await client.put_bytes(PATH, b"image", IMAGE)
    assert gate.count("HEAD", PATH) == 1
    await gate.answer(201, {**OURS, "ETag": '"0x1"'}, match=only("PUT"))
    for data in (b"other", b"longer image"):
        with pytest.raises(BucketError, match=NOT_TAKEN):
            await client.put_bytes(PATH, data, IMAGE)
    with pytest.raises(BucketError, match=NOT_TAKEN):
        await client.put_bytes(f"{PATH}2", b"image", IMAGE)


async def test_large_upload_is_proved_by_a_head(client: AzureClient, gate: Gate) -> None:
    draft = await MemorySpool(20_000_000).begin(17_000_000)
    await draft.write(bytes(17_000_000))
    await client.put_draft(PATH, draft, IMAGE)
    assert (gate.count("PUT", "comp=block&"), gate.count("PUT", "comp=blocklist")) == (3, 1)
    assert gate.count("HEAD", PATH) == 1
    await gate.answer(201, OURS, match=only("PUT", "comp=blocklist"))
    with pytest.raises(BucketError, match=NOT_TAKEN):
        await client.put_draft(f"{PATH}2", draft, IMAGE)


async def test_failed_block_commits_nothing(client: AzureClient, gate: Gate, azurite: Azurite) -> None:
    draft = await MemorySpool(20_000_000).begin(17_000_000)
    await draft.write(bytes(17_000_000))
    await gate.reset_mid_body(5_000_000)
    with pytest.raises(BucketError):
        await client.put_draft(PATH, draft, IMAGE)
    assert gate.count("PUT", "comp=blocklist") == 0
    await gate.open()
    await client.put_draft(PATH, draft, IMAGE)
    assert await azurite.objects() == {PATH: bytes(17_000_000)}


# --- copies


async def test_copy_that_takes_time_is_waited_for(client: AzureClient, gate: Gate, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"bad", IMAGE)
    await gate.set_header("x-ms-copy-status", "pending", match=only("PUT"))
    await client.quarantine(PATH, await etag_of(client))
    ((name, body),) = (await azurite.objects()).items()
    assert (name.startswith("damaged/"), body) == (True, b"bad")


async def test_failed_copy_deletes_nothing(client: AzureClient, gate: Gate, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"bad", IMAGE)
    etag = await etag_of(client)
    await gate.set_header("x-ms-copy-status", "failed", match=only("PUT"))
    with pytest.raises(BucketError):
        await client.quarantine(PATH, etag)
    for code, status in {"CannotVerifyCopySource": 403, "PendingCopyOperation": 409}.items():
        await gate.answer(status, {**OURS, "x-ms-error-code": code}, match=only("PUT"))
        with pytest.raises(BucketError) as failed:
            await client.quarantine(PATH, etag)
        assert failed.value.error_code == code
    assert gate.count("DELETE") == 0
    assert (await azurite.objects())[PATH] == b"bad"


async def test_good_version_that_comes_after_the_copy_stays(client: AzureClient, gate: Gate, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"bad", IMAGE)
    etag = await etag_of(client)
    await gate.answer(202, {**OURS, "x-ms-copy-status": "success"}, match=only("PUT"), times=1)
    await azurite.put(PATH, b"good")
    await client.quarantine(PATH, etag)
    assert await azurite.objects() == {PATH: b"good"}


# --- what operators and other programs do to blobs


async def test_leased_blob_is_a_failure_of_one_blob_with_a_remedy(client: AzureClient, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"image", IMAGE)
    async with azurite.client() as other:
        await other.get_blob_client(PATH).acquire_lease()
    for call in (client.delete(PATH), client.put_bytes(PATH, b"other", IMAGE)):
        with pytest.raises(BucketError) as failed:
            await call
        assert (failed.value.error_code, failed.value.general) == ("LeaseIdMissing", False)
        assert failed.value.remedy == "break the lease of the blob"


async def test_archived_blob_is_a_failure_with_a_remedy_and_no_miss(client: AzureClient, azurite: Azurite) -> None:
    await client.put_bytes(PATH, b"image", IMAGE)
    async with azurite.client() as other:
        await other.get_blob_client(PATH).set_standard_blob_tier("Archive")
    with pytest.raises(BucketError) as failed:
        await client.get(PATH)
    assert (failed.value.error_code, failed.value.general) == ("BlobArchived", False)
    assert "rehydrate" in (failed.value.remedy or "")


@pytest.mark.parametrize("code", ["a" * 100, "<b>", "", "Blob Not Found"], ids=repr)
async def test_code_that_is_none_is_not_repeated(client: AzureClient, gate: Gate, code: str) -> None:
    await gate.answer(404, {**OURS, "x-ms-error-code": code})
    with pytest.raises(BucketError, match=r"the container answers 404$"):
        await client.get(PATH)
    with pytest.raises(BucketError, match=r"the container answers 404$"):
        await client.stat(PATH)


NOW = datetime(2026, 11, 30, 16, tzinfo=UTC)


@pytest.mark.parametrize(
    ("credentials", "date", "remedy"),
    [
        (AccountKey(b"key"), format_datetime(NOW), "correct the account and its key"),
        (SasToken("sig=1"), format_datetime(NOW), "renew the SAS"),
        (MachineIdentity(), format_datetime(NOW), "tenant"),
        (AccountKey(b"key"), format_datetime(NOW + timedelta(minutes=20)), "set the clock"),
        (SasToken("sig=1"), format_datetime(NOW - timedelta(days=1)), "set the clock"),
        (SasToken("sig=1"), "yesterday", "renew the SAS"),
        (SasToken("sig=1"), "Mon, 30 Nov 2026 16:00:00", "renew the SAS"),
        (SasToken("sig=1"), "Mon, 99 Nov 99999 16:00:00 +9999", "renew the SAS"),
    ],
)
def test_refused_credentials_have_the_remedy_of_their_kind(credentials: Credentials, date: str, remedy: str) -> None:
    error = make_error(403, {"x-ms-error-code": "AuthenticationFailed", "Date": date}, credentials, NOW)
    assert remedy in (error.remedy or "")
    assert error.general


# --- lists


def page_of(*entries: str, marker: str = "") -> bytes:
    return (
        '\N{ZERO WIDTH NO-BREAK SPACE}<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x">'
        f"<Blobs>{''.join(f'<Blob>{entry}</Blob>' for entry in entries)}</Blobs>"
        f"<NextMarker>{marker}</NextMarker></EnumerationResults>"
    ).encode()


def entry(name: str, size: object, *, attribute: str = "", more: str = "") -> str:
    properties = f"<Properties><Content-Length>{size}</Content-Length>{more}</Properties>"
    return f"<Name{attribute}>{name}</Name>{properties}<OrMetadata />"


def test_page_is_read() -> None:
    page = read_page(
        page_of(
            entry("v1/a &amp; b", 1),
            entry("v1/%EF%BF%BE", 2, attribute=' Encoded="true"'),
            entry("v1", 0, more="<ResourceType>directory</ResourceType>"),
            entry("v1/c", 3, more="<ResourceType>file</ResourceType>"),
            marker="2!88!next",
        )
    )
    assert page.entries == [("v1/a & b", 1), ("v1/\ufffe", 2), ("v1/c", 3)]
    assert page.marker == "2!88!next"


BOMB = (
    b'<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b"<EnumerationResults>&b;</EnumerationResults>"
)


NO_PAGES = {
    "empty": b"",
    "portal": b"<html><title>Log in</title></html>",
    "portal that is no XML": b"<html><br></html>",
    "cut off": page_of(entry("a", 1))[:-20],
    "no size": page_of(entry("a", "")),
    "negative size": page_of(entry("a", "-1")),
    "size with an exponent": page_of(entry("a", "1e3")),
    "endless size": page_of(entry("a", "9" * 5000)),
    "no name": page_of(entry("", 1)),
    "no properties": page_of("<Name>a</Name>"),
    "entities": BOMB,
    "depth": b"<a>" * 100_000,
    "number": b"<a>" + b"<b/>" * 200_000 + b"</a>",
    "long name that all paths repeat": b"<" + b"a" * 100_000 + b">" + b"<b/>" * 100_000,
    "unknown encoding": b'<?xml version="1.0" encoding="utf-99"?><html/>',
    "bytes": b"\xff\xfe\x00",
}


@table("data", NO_PAGES.values(), ids=NO_PAGES)
def test_page_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(BucketError):
        read_page(data)


def test_full_page_is_within_the_bounds() -> None:
    more = "".join(f"<Property{number}>x</Property{number}>" for number in range(40))
    page = read_page(page_of(*(entry(f"v1/{'x' * 1000}{number}", 1, more=more) for number in range(1000))))
    assert len(page.entries) == 1000
    assert read_elements(b"<a>" * 16 + b"</a>" * 16)[-1].path == "a"


def test_tag_without_end_is_refused_before_it_is_parsed() -> None:
    attributes = b" ".join(b'a%x=""' % number for number in range(40_000))
    with pytest.raises(ValueError, match="a tag is too long"):
        read_elements(b"<a " + attributes + b"/>")


async def test_empty_page_with_a_marker_is_not_the_end(client: AzureClient, gate: Gate, azurite: Azurite) -> None:
    await azurite.put("v1/a", b"1")
    for call in (lambda: client.has_any("v1/"), lambda: anext(client.walk("v1"))):
        await gate.answer(200, OURS, page_of(marker="a"), times=1)
        assert await call()


async def test_list_that_never_ends_is_a_failure(client: AzureClient, gate: Gate) -> None:
    await gate.answer(200, OURS, page_of(marker="again"))
    with pytest.raises(BucketError):
        [entry async for entry in client.walk("v1")]
    with pytest.raises(BucketError):
        await client.has_any("v1/")


async def test_list_of_many_pages_is_walked(
    client: AzureClient, azurite: Azurite, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgkeep.storage.azure.client.ENTRIES_MAX", 2)
    names = [f"v1/{number}" for number in range(5)]
    for name in names:
        await azurite.put(name, b"x")
    assert [path async for path, _ in client.walk("v1")] == names
    assert gate.count("GET", "comp=list") == 3


async def test_page_without_end_is_not_read_whole(
    client: AzureClient, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgkeep.storage.azure.client.PAGE_BYTES_MAX", 100_000)
    await gate.answer(200, OURS, page_of(*(entry("a", 1) for _ in range(10_000))))
    with pytest.raises(BucketError):
        await client.has_any("v1/")
    assert listing.PAGE_BYTES_MAX == 16_777_216
