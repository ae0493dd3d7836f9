"""The client of a bucket of Google Cloud Storage."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from imgkeep.clock import read_clock
from imgkeep.storage.bucket.client import (
    PROBE_BYTES,
    Features,
    ObjectFields,
    ObjectResponse,
    ObjectStatus,
    quarantine_path,
    range_field,
)
from imgkeep.storage.bucket.errors import CHANGED, NOT_TAKEN, AlreadyThere, BucketError
from imgkeep.storage.bucket.http_requests import HttpRequest
from imgkeep.storage.bucket.pages import Pages
from imgkeep.storage.gcs.connection import GcsConnection, ObjectResource
from imgkeep.storage.gcs.credential_requests import Transport
from imgkeep.storage.gcs.errors import EXISTS, LIMITED, NOT_GCS
from imgkeep.storage.gcs.live_checks import OwnChecks
from imgkeep.storage.gcs.signed_urls import prepare
from imgkeep.storage.gcs.uploads import DraftInEnvelope, Envelope, checksum_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from imgkeep.core.store_url import GcsBucket
    from imgkeep.storage.bucket.body import DraftPart
    from imgkeep.storage.bucket.client import Check
    from imgkeep.storage.bucket.http_requests import HttpResponse
    from imgkeep.storage.interfaces import Draft

WRITE_INTERVAL_S: Final = 1
"""Time between two writes of one object that the service allows ("Quotas and limits")."""
REWRITES_MAX: Final = 100
"""Maximum number of requests for a copy; within a bucket it takes one, and else one for each MiB or more."""
RESOURCE_FIELDS: Final = "name,size,generation,md5Hash"

_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_HASHES: Final = re.compile(r"(?:crc32c|md5)=[A-Za-z0-9+/]+={0,2}(?:, ?(?:crc32c|md5)=[A-Za-z0-9+/]+={0,2})*")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class _Rewrite(msgspec.Struct):
    """The answer to a step of a copy; a copy to another place takes several."""

    done: bool
    rewrite_token: str = msgspec.field(default="", name="rewriteToken")
    resource: ObjectResource | None = None


class GcsClient:
    """
    The client of one bucket of Google Cloud Storage. Implements `BucketClient`; an ETag is the generation of an object.

    Args:
        observe: Receives operation, outcome and seconds of each call.
        make_transport: As in `GcsCredentials`.
    """

    service = "gcs"

    def __init__(
        self,
        bucket: GcsBucket,
        *,
        timeout_s: float = 5,
        observe: Callable[[str, str, float], None] = lambda *_: None,
        make_transport: Callable[[float], Transport] = Transport,
    ) -> None:
        self.bucket = bucket
        self.timeout_s = timeout_s
        self.features = Features(conditional_put=True)
        self._connection = GcsConnection(bucket, timeout_s=timeout_s, observe=observe, make_transport=make_transport)

    @property
    def place(self) -> str:
        return self._connection.limits.place

    @property
    def answered_at(self) -> float:
        return self._connection.limits.answered_at

    async def open(self) -> None:
        await self._connection.open()
        self.features.presign = self._connection.credentials.can_sign

    async def check_settings(self) -> None:
        await asyncio.to_thread(self._connection.check_settings)

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:
        query = {"alt": "media"}
        if etag:
            query["ifGenerationMatch"] = etag
        part = range_field(start, end)
        headers = {} if part is None else {"Range": part}
        url = self._connection.object_url(path, query, root="/download/storage/v1")
        try:
            response = await self._connection.open_response("get_object", HttpRequest("GET", url, headers))
        except BucketError as error:
            if await self._connection.is_miss(error, path):
                return None
            if etag and error.error_code == EXISTS:
                raise self._connection.limits.name(BucketError(CHANGED, general=False)) from None
            raise
        try:
            size, generation = _read_media_head(response, None if part is None else start)
            if etag and generation != etag:
                raise BucketError(CHANGED, general=False)  # noqa: TRY301 - the stream is closed below
        except BucketError as error:
            response.stream.close()
            raise self._connection.limits.reject_answer(error) from None
        return ObjectResponse(size, generation, response.stream)

    async def stat(self, path: str) -> ObjectStatus | None:
        found = await self._read_resource(path)
        return None if found is None else ObjectStatus(int(found.size), found.generation)

    async def _read_resource(self, path: str) -> ObjectResource | None:
        request = HttpRequest("GET", self._connection.object_url(path, {"fields": RESOURCE_FIELDS}), {})
        try:
            found = await self._connection.call(ObjectResource, "head_object", request)
        except BucketError as error:
            if await self._connection.is_miss(error, path):
                return None
            raise
        self._check(found, path)
        return found

    def _check(self, found: ObjectResource, path: str) -> None:
        """Check that an answer is about an object. Raises: BucketError."""
        if found.name != self.bucket.path(path):
            raise self._connection.limits.reject_answer(BucketError(NOT_GCS))

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:
        envelope = Envelope(self.bucket.path(path), fields, len(data), checksum_of(data))
        body = envelope.head + data + envelope.tail
        await self._put(path, envelope, body, only_if_absent=only_if_absent and self.features.conditional_put)

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:
        envelope = Envelope(self.bucket.path(path), fields, draft.size, await draft.check(checksum_of))
        await self._put(path, envelope, DraftInEnvelope(draft, envelope))

    async def _put(
        self, path: str, envelope: Envelope, body: bytes | DraftPart, *, only_if_absent: bool = False
    ) -> None:
        try:
            stored = await self._upload(envelope, body, only_if_absent=only_if_absent)
        except BucketError as error:
            if error.error_code not in LIMITED:
                raise
            # Several nodes may write the same bytes at once: then they are there.
            found = await self._read_resource(path)
            if found is not None and envelope.holds(found.md5_hash, found.size):
                return
            if self.timeout_s <= WRITE_INTERVAL_S:
                raise
            await asyncio.sleep(WRITE_INTERVAL_S)
            stored = await self._upload(envelope, body, only_if_absent=only_if_absent)
        self._check(stored, path)
        if not envelope.holds(stored.md5_hash, stored.size):
            raise self._connection.limits.name(BucketError(NOT_TAKEN))

    async def _upload(self, envelope: Envelope, body: bytes | DraftPart, *, only_if_absent: bool) -> ObjectResource:
        query = {"uploadType": "multipart", "fields": RESOURCE_FIELDS}
        if only_if_absent:
            query["ifGenerationMatch"] = "0"  # no generation: it is not there (JSON API, "Request preconditions")
        headers = {"Content-Type": envelope.content_type, "Content-Length": str(envelope.size)}
        request = HttpRequest("POST", self._connection.upload_url(query), headers, body)
        try:
            return await self._connection.call(ObjectResource, "put_object", request)
        except BucketError as error:
            if only_if_absent and error.error_code == EXISTS:
                raise AlreadyThere from None
            raise self._connection.of_bucket(error) from None

    async def delete(self, path: str) -> None:
        await self._delete(path, {})

    async def _delete(self, path: str, query: Mapping[str, str]) -> None:
        try:
            request = HttpRequest("DELETE", self._connection.object_url(path, query), {})
            response = await self._connection.open_response("delete_object", request)
        except BucketError as error:
            if error.error_code != EXISTS and not await self._connection.is_miss(error, path):
                raise
            return
        response.stream.close()
        # An emulator answers 200 with JSON; the page of a portal is neither.
        if response.status != HTTPStatus.NO_CONTENT and not _is_json(response.headers):
            raise self._connection.limits.reject_answer(BucketError(NOT_GCS))

    async def quarantine(self, path: str, etag: str) -> None:
        # Emulators ignore the conditions below, so this makes sure; the service itself would not need it.
        stat = await self.stat(path)
        if stat is None or stat.etag != etag:
            return
        target = quarantine_path(path)
        if await self._copy(path, target, etag):
            await self._delete(path, {"ifGenerationMatch": etag})

    async def _copy(self, path: str, target: str, etag: str) -> bool:
        """Copy a version of an object to a name in the bucket; `False`: it is not there."""
        tail = f"/rewriteTo/b/{self.bucket.name}/o/{quote(self.bucket.path(target), safe='')}"
        query = {"ifSourceGenerationMatch": etag}
        for _ in range(REWRITES_MAX):
            request = HttpRequest("POST", self._connection.object_url(path, query, tail=tail), {"Content-Length": "0"})
            try:
                answer = await self._connection.call(_Rewrite, "copy_object", request)
            except BucketError as error:
                if error.error_code == EXISTS or await self._connection.is_miss(error, path):
                    return False
                raise
            if answer.done and answer.resource is not None:
                self._check(answer.resource, target)
                return True
            query["rewriteToken"] = answer.rewrite_token
        raise self._connection.limits.reject_answer(BucketError(NOT_GCS))

    async def has_any(self, prefix: str) -> bool:
        return await self._connection.find_first(self.bucket.path(prefix)) is not None

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        prefix = self.bucket.path(f"{folder}/")
        token = ""
        pages, goes_on = Pages(), True
        while goes_on:
            page = await self._connection.list_page(prefix, token=token)
            for item in page.items:
                if not item.name.startswith(prefix):
                    raise self._connection.limits.reject_answer(BucketError(NOT_GCS))
                yield f"{folder}/{item.name.removeprefix(prefix)}", int(item.size)
            token = page.next_page_token
            goes_on = pages.go_on(token, is_empty=not page.items)

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        credentials = self._connection.credentials
        try:
            account = await credentials.find_account()
            life_s = min(ttl_s, credentials.link_ttl_s_max)
            link = prepare(self.public_url(path), account=account, now=read_clock(), ttl_s=life_s, head=head)
            return link.add(await credentials.sign(link.text, account)), life_s
        except BucketError as error:
            raise self._connection.limits.name(error) from None

    def public_url(self, path: str) -> str:
        return f"{self._connection.base}/{self.bucket.name}/{quote(self.bucket.path(path))}"

    async def probe_features(self, path: str) -> None:
        body = PROBE_BYTES
        envelope = Envelope(self.bucket.path(path), ObjectFields("text/plain"), len(body), checksum_of(body))
        try:
            await self._upload(envelope, envelope.head + body + envelope.tail, only_if_absent=True)
        except AlreadyThere:
            self.features.conditional_put = True
        except BucketError as error:
            if error.error_code not in LIMITED:  # other nodes probe at the same moment
                raise
        else:
            self.features.conditional_put = False  # an emulator

    async def abort_uploads(self) -> int:
        return 0  # an upload is one request, which leaves nothing behind

    def live_checks(self, path: str, image: bytes) -> Sequence[Check]:
        return OwnChecks(self, self._copy, path=path, image=image).steps()


def _read_media_head(response: HttpResponse, start: int | None) -> tuple[int, str]:
    """
    Return the size of the media in a response, and the generation of its object.

    Args:
        response: A response to a download.
        start: The first byte of the part that was requested; `None`: all of it.

    Raises:
        BucketError: Another server answers, or not with what is stored.
    """
    headers = response.headers
    generation, length = headers.get("x-goog-generation", ""), headers.get("Content-Length", "")
    stored = headers.get("x-goog-stored-content-length")
    if not _NUMBER.fullmatch(generation):
        raise BucketError(NOT_GCS)
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        part = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if not part or int(part[1]) != start or length != str(int(part[2]) - int(part[1]) + 1):
            raise BucketError(NOT_GCS)
        return int(length), generation
    if not _HASHES.fullmatch(headers.get("x-goog-hash", "")):
        raise BucketError(NOT_GCS)
    if not _NUMBER.fullmatch(length) or stored not in {None, length}:
        # Transcoding ("Transcoding of gzip-compressed files"): another program has stored it compressed.
        raise BucketError("the bucket does not return the bytes that are stored", general=False)
    return int(length), generation


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Type", "").partition(";")[0].strip() == "application/json"
