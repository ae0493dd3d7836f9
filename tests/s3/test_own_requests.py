"""Requests of our own to the objects of a bucket: signed as the AWS library signs, and with the same meaning."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError

from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import AlreadyThere, BucketError
from imgkeep.storage.s3 import S3Client
from imgkeep.storage.s3.errors import NOT_S3, REMEDIES
from imgkeep.storage.s3.object_requests import OtherRegionError, make_refusal, read_code
from imgkeep.storage.s3.request_signing import RequestSigner
from tests.support.s3.misbehaving import only, s3_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.s3.remote import Remote

PATH = f"v1/objects/ab/ab{'0' * 62}.png"
PNG = ObjectFields("image/png", "public, max-age=1", "inline")
SIGNED = re.compile(
    r"Credential=(?P<key>[^/]+)/(?P<day>\d+)/(?P<region>[^/]+)/s3/aws4_request, SignedHeaders=(?P<names>[^,]+)"
)


@asynccontextmanager
async def opened(place: S3Bucket, *, timeout_s: float = 5) -> AsyncGenerator[S3Client]:
    client = S3Client(place, timeout_s=timeout_s)
    await client.open()
    yield client
    await client.aclose()


@asynccontextmanager
async def opened_to(remote: Remote) -> AsyncGenerator[S3Client]:
    async with opened(S3Bucket(remote.server.bucket, "p r+e", "us-east-1", remote.gate.endpoint)) as client:
        yield client


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "our-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "our-secret")


# --- signatures


@pytest.mark.parametrize("token", ["", "our-token"])
async def test_signature_is_that_of_the_library(
    origin: FakeOrigin, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    received: list[Exchange] = []

    async def answer(exchange: Exchange) -> None:
        received.append(exchange)
        await exchange.answer(b"image", headers={"ETag": '"tag"'})

    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    origin.on(f"/bucket/p%20r/{PATH}", answer)
    place = S3Bucket("bucket", "p r", region="eu-central-1", endpoint=origin.url(""), addressing="path")
    async with opened(place) as client:
        found = await client.get(PATH, start=3, end=5, etag="tag")
        assert found is not None
        found.stream.close()
    (exchange,) = received
    sent = {name.lower(): value for name, value in exchange.headers.items()}
    assert sent.get("x-amz-security-token", "") == token
    assert sent["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert (sent["range"], sent["if-match"]) == ("bytes=3-4", '"tag"')
    told = SIGNED.search(sent["authorization"])
    assert told is not None
    assert (told["key"], told["region"]) == ("our-key", "eu-central-1")
    names = told["names"].split(";")
    assert {"host", "range", "if-match"} <= set(names)
    request = AWSRequest("GET", origin.url(f"/bucket/p%20r/{PATH}"), {name: sent[name] for name in names})
    request.context["timestamp"] = sent["x-amz-date"]
    signer = S3SigV4Auth(ReadOnlyCredentials("our-key", "our-secret", token or None), "s3", "eu-central-1")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert sent["authorization"].endswith(f"Signature={signer.signature(text, request)}")


@pytest.mark.parametrize("remote", ["versitygw", "rclone"], indirect=True)
async def test_servers_that_check_signatures_take_all_requests(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", remote.server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", remote.server.secret)
    async with opened_to(remote) as client:
        await client.put_bytes(PATH, b"image", PNG)
        status = await client.stat(PATH)
        assert status is not None
        assert status.size == 5
        found = await client.get(PATH, etag=status.etag)
        assert found is not None
        assert await found.stream.read_all(9) == b"image"
        assert await client.get(f"{PATH}.other") is None
    assert {seen.headers["user-agent"] for seen in remote.gate.seen} == {"imgkeep"}
    if remote.server.name == "rclone":  # versitygw closes each connection
        assert remote.gate.connections == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    async with opened_to(remote) as client:
        with pytest.raises(BucketError) as refused:
            await client.get(PATH)
        assert refused.value.error_code == "SignatureDoesNotMatch"


# --- requests and answers


async def test_fields_and_condition_of_a_put_are_sent(remote: Remote) -> None:
    async with opened_to(remote) as client:
        client.features.conditional_put = True
        await client.put_bytes(PATH, b"image", PNG, only_if_absent=True)
        with pytest.raises(AlreadyThere):
            await client.put_bytes(PATH, b"image", PNG, only_if_absent=True)
    (name,) = await remote.server.objects()
    assert name == f"p r+e/{PATH}"
    head = await remote.server.head(name)
    assert head is not None
    assert (head["ContentType"], head["CacheControl"]) == ("image/png", "public, max-age=1")
    sent = remote.gate.seen[0].headers
    assert (sent["content-disposition"], sent["if-none-match"]) == ("inline", "*")
    assert "expect" not in sent


async def test_page_of_a_portal_is_no_object(remote: Remote) -> None:
    await remote.gate.answer(200, {"Content-Type": "text/html"}, b"<h1>Log in to use this network</h1>")
    async with opened_to(remote) as client:
        for asking in (client.get(PATH), client.stat(PATH), client.put_bytes(PATH, b"image", PNG)):
            with pytest.raises(BucketError, match=NOT_S3):
                await asking


async def test_passing_failure_is_tried_twice(remote: Remote) -> None:
    async with opened_to(remote) as client:
        await remote.gate.do(s3_error(500, "InternalError"), times=1)
        await client.put_bytes(PATH, b"image", PNG)
        await remote.gate.slow_down()
        with pytest.raises(BucketError) as failed:
            await client.get(PATH)
        assert (failed.value.error_code, failed.value.general) == ("SlowDown", True)
        assert remote.gate.count("GET") == 2


# --- another region


async def test_library_finds_the_region_that_an_answer_names(remote: Remote) -> None:
    async with opened_to(remote) as client:
        await client.put_bytes(PATH, b"image", PNG)
        before = len(remote.gate.seen)
        elsewhere = s3_error(400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": "eu-central-1"})
        await remote.gate.do(elsewhere, times=1)
        for _ in range(2):
            found = await client.get(PATH)
            assert found is not None
            assert await found.stream.read_all(9) == b"image"
    agents = [seen.headers["user-agent"] for seen in remote.gate.seen[before:]]
    assert agents[0] == "imgkeep"
    assert all("botocore" in agent for agent in agents[1:])


@pytest.mark.parametrize("field", [{}, {"x-amz-bucket-region": "eu-central-1"}], ids=["unnamed", "named"])
async def test_redirect_of_another_region_is_a_typed_error(remote: Remote, field: dict[str, str]) -> None:
    await remote.gate.do(s3_error(301, "PermanentRedirect", field))
    async with opened_to(remote) as client:
        with pytest.raises(BucketError) as failed:
            await client.get(PATH)
    assert failed.value.error_code == "PermanentRedirect"
    assert (failed.value.general, failed.value.remedy) == (True, REMEDIES["PermanentRedirect"])
    assert len(remote.gate.seen) < 6


# --- bodies of errors


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<Error><Code>NoSuchKey</Code></Error>", "NoSuchKey"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<Error xmlns="urn:x">\n<Code> NoSuchKey </Code></Error>\n', "NoSuchKey"),
        (b"<Error><Code>NoSuchKey</Code>", ""),
        (b"<html><Error><Code>NoSuchKey</Code></Error></html>", ""),
        (b"<ErrorResponse><Code>NoSuchKey</Code></ErrorResponse>", ""),
        (b"<Error><Code>no such key?</Code></Error>", ""),
        (b"<Error><Code>" + b"A" * 65 + b"</Code></Error>", ""),
        (b"", ""),
    ],
)
def test_code_is_read_of_a_whole_error_of_s3_alone(body: bytes, code: str) -> None:
    assert read_code(body) == code


@pytest.mark.parametrize("piece", [b" ", b"<?xml ", b"<Error><Code>", b"<Code> ", b"<Error>" + b" " * 100])
def test_hostile_error_costs_one_pass(piece: bytes) -> None:
    body = (piece * (65_536 // len(piece) + 1))[:65_528] + b"</Error>"
    assert read_code(body) == ""


@pytest.mark.parametrize(
    ("status", "headers", "body", "is_other"),
    [
        (301, {"x-amz-bucket-region": "eu-west-1"}, b"", True),
        (400, {"x-amz-bucket-region": "eu-west-1"}, b"", True),
        (403, {"x-amz-bucket-region": "eu-west-1"}, b"", False),
        (302, {"Location": "http://portal.example/"}, b"", False),
        (400, {}, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>", True),
        (400, {}, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>", False),
    ],
)
def test_only_an_answer_that_names_a_region_goes_to_the_library(
    status: int, headers: dict[str, str], body: bytes, *, is_other: bool
) -> None:
    assert isinstance(make_refusal(status, headers, body), OtherRegionError) == is_other


async def test_object_in_pieces_keeps_its_bytes(remote: Remote) -> None:
    body = bytes(range(256)) * 8000
    async with opened_to(remote) as client:
        await remote.server.put(f"p r+e/{PATH}", body)
        found = await client.get(PATH)
        assert found is not None
        digest = sha256()
        while piece := await found.stream.read(65_536):
            digest.update(piece)
        assert digest.hexdigest() == sha256(body).hexdigest()
        await remote.gate.cut_body(1_000_000, match=only("GET"))
        cut = await client.get(PATH)
        assert cut is not None
        with pytest.raises(BucketError):
            await cut.stream.read_all(len(body))


async def test_missing_credentials_are_the_error_of_the_library() -> None:
    signer = RequestSigner("http://bucket.example", "us-east-1", "s3", None)
    with pytest.raises(NoCredentialsError):
        await signer.sign("GET", signer.url_of("a"), {})


class _Credentials:
    """Static credentials, as the library's session gives them."""

    def __init__(self) -> None:
        self.now = ReadOnlyCredentials("key", "secret", None)

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return self.now


@pytest.mark.parametrize("base", ["https://b.s3.example", "http://127.0.0.1:80/b", "https://s3.example:8443/b/c%20d"])
async def test_any_place_field_and_renewed_secret_is_signed_as_by_the_library(base: str) -> None:
    credentials = _Credentials()
    signer = RequestSigner(base, "eu-west-1", "s3", credentials)
    for secret in ("secret", "renewed"):
        credentials.now = ReadOnlyCredentials("key", secret, "token")
        url = signer.url_of("pre fix/ü~(1)+@.png")
        sent = await signer.sign("PUT", url, {"Content-Type": "image/png", "Cache-Control": " a,   b "})
        names = SIGNED.search(sent["Authorization"])
        assert names is not None
        kept = {name: value for name, value in sent.items() if name != "Authorization"}
        request = AWSRequest("PUT", url, kept)
        request.context["timestamp"] = sent["X-Amz-Date"]
        library = S3SigV4Auth(credentials.now, "s3", "eu-west-1")
        text = library.string_to_sign(request, library.canonical_request(request))
        assert sent["Authorization"].endswith(f"Signature={library.signature(text, request)}")
