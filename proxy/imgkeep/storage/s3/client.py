"""
One bucket: every call has a time limit, every failure is a `StorageError` without secrets.

What aiobotocore leaves to its user and is settled here (measured on 3.10): a PUT that waits for `100 Continue` waits
for ever; a redirect without a region ends in a recursion; the checksums that are its default break other services; what
a proxy on the way answers with 200 counts as success; and five attempts of a minute each are more than a visitor has.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import botocore
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, NoCredentialsError

from imgkeep.core.errors import Busy, StorageError
from imgkeep.storage.s3.errors import EXISTS, MISSING, NOT_S3, BucketError, translate_error
from imgkeep.storage.s3.settings import check_settings, open_session, refuse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from imgkeep.core.store_url import Bucket

PLACES_MAX: Final = 128
"""Requests under way: twice as many as fills at a time; more only wait for each other's bandwidth."""
QUEUE_TIMEOUT_S: Final = 10
ATTEMPTS_MAX: Final = 2
"""One 500 in a million is normal, two in a row are an outage; the breaker and the outbox do the rest."""
SESSION_TTL_S: Final = 600
"""Temporary credentials are renewed ten minutes before they end (botocore): a link signed with them lives no longer."""


class ResponseStream:
    """The body of an answer as it comes. It holds a place until its end, or until it is closed."""

    def __init__(self, body: Any, timeout_s: float, release: Callable[[], None]) -> None:
        self._body = body
        self._timeout_s = timeout_s
        self._release = release
        self._open = True

    async def read(self, size: int) -> bytes:
        """
        Read up to `size` bytes; nothing at the end.

        Raises:
            BucketError: It broke off, or nothing came for `timeout_s`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                piece: bytes = await self._body.read(size)
        except Exception:  # noqa: BLE001 - of aiohttp, of aiobotocore and of its wrapper: the stream is over
            self.close()
            raise BucketError("the bucket's answer broke off") from None
        if not piece:
            self.close()
        return piece

    async def read_all(self, size_max: int) -> bytes:
        """Read up to `size_max` bytes within `timeout_s`, and close. Raises as `read`."""
        data = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while len(data) < size_max and (piece := await self.read(size_max - len(data))):
                    data += piece
        except TimeoutError:
            raise BucketError("the bucket does not answer within store.timeout_s") from None
        finally:
            self.close()
        return bytes(data)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._body.close()
            self._release()


@dataclass(frozen=True, slots=True)
class ObjectResponse:
    """An answer to a GET: `size` of what comes, `etag` without quotes."""

    size: int
    etag: str
    stream: ResponseStream


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """What a HEAD tells of an object; `etag` without quotes."""

    size: int
    etag: str


class BucketClient:
    """Calls on one bucket. `observe` is told operation, outcome and seconds of each."""

    def __init__(self, bucket: Bucket, *, timeout_s: float, observe: Callable[[str, str, float], None]) -> None:
        self.bucket = bucket
        self.place = f"bucket {bucket.name}"
        """What faults say of where they were met; the host is known once the client is open."""
        self.timeout_s = timeout_s
        self._observe = observe
        self._stack = AsyncExitStack()
        self._places = asyncio.Semaphore(PLACES_MAX)
        self._addressing = bucket.addressing
        self._client: Any = None
        self._public: Any = None
        self._credentials: Any = None
        self.answered_at = float("-inf")
        """When the bucket last gave a proper answer, on the loop's clock."""

    async def open(self) -> None:
        """
        Make the client. No request is sent, but where the credentials are those of a machine's role.

        Raises:
            ConfigError: The AWS configuration of this machine is not usable.
        """
        session = await open_session()
        try:
            self._client = await self._make(session, "s3v4")
            if (
                self._addressing == "auto"
                and _is_amazon(self._client.meta.endpoint_url)
                and "." not in self.bucket.name
            ):
                # Left to itself botocore signs links to a global host, which knows new buckets late.
                self._addressing = "virtual"
                self._client = await self._make(session, "s3v4")
            self._public = await self._make(session, botocore.UNSIGNED)
            self._credentials = await session.get_credentials()
        except (BotoCoreError, ValueError) as error:
            raise refuse(error) from None
        base = await self._public.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket.name, "Key": "probe"}
        )
        self.public_base: str = base.removesuffix("/probe")
        self.place = f"bucket {self.bucket.name} at {urlsplit(self._client.meta.endpoint_url).netloc}"

    async def check_settings(self) -> None:
        """Try whether a client could be made, without any request. Raises: ConfigError: None could be."""
        await check_settings(self._options("s3v4"))

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def _enter(self) -> None:
        # Waiting for a place is no fault of the bucket's, so it has a time of its own.
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._places.acquire()
        except TimeoutError:
            raise Busy("too many requests to the bucket are under way", retry_after_s=2) from None

    async def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        start, outcome = loop.time(), "cancelled"
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                body: Any = parameters.get("Body")
                if hasattr(body, "progress"):
                    body.progress = lambda: limit.reschedule(loop.time() + self.timeout_s)
                answer: dict[str, Any] = await getattr(self._client, operation)(Bucket=self.bucket.name, **parameters)
            outcome = "ok"
        except Exception as error:  # noqa: BLE001 - every one of them is named or told to be no answer of S3's
            failure = self._name(translate_error(error))
            outcome = getattr(failure, "error_code", "") or "unreachable"
            if outcome in EXISTS | {MISSING}:
                self.answered_at = loop.time()
            raise failure from None
        finally:
            self._observe(operation, outcome, loop.time() - start)
        self.answered_at = loop.time()
        return answer

    def _name(self, fault: Exception) -> Exception:
        """Have a fault say which bucket it is of."""
        if isinstance(fault, StorageError):
            fault.place = fault.place or self.place
        return fault

    async def _make(self, session: Any, signature: object) -> Any:
        return await self._stack.enter_async_context(session.create_client("s3", **self._options(signature)))

    def _options(self, signature: object) -> dict[str, Any]:
        return {
            "region_name": self.bucket.region,
            "endpoint_url": self.bucket.endpoint,
            "config": AioConfig(
                signature_version=signature,
                connect_timeout=self.timeout_s,
                read_timeout=self.timeout_s,
                max_pool_connections=PLACES_MAX,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
                # The defaults of 2025 are not understood everywhere; our own MD5 and SHA-256 check more.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": self._addressing, "payload_signing_enabled": False},
                user_agent_extra="imgkeep",
            ),
        }

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """
        Call one operation on the bucket.

        Raises:
            BucketError: It failed, or made no progress for `timeout_s`.
            Busy: Too many other requests are under way.
        """
        await self._enter()
        try:
            return await self._call(operation, parameters)
        finally:
            self._places.release()

    async def get(self, path: str, **conditions: str) -> ObjectResponse | None:
        """Open an object, or the part of it that `conditions` tell; `None`: it is not there. Raises as `call`."""
        await self._enter()
        try:
            answer = await self._call("get_object", {"Key": self.bucket.path(path), **conditions})
        except BaseException as error:
            self._places.release()
            if isinstance(error, BucketError) and error.error_code == MISSING:
                return None
            raise
        stream = ResponseStream(answer["Body"], self.timeout_s, self._places.release)
        if not read_etag(answer) or not isinstance(answer.get("ContentLength"), int):
            stream.close()
            raise BucketError(NOT_S3)
        return ObjectResponse(answer["ContentLength"], read_etag(answer), stream)

    async def stat(self, path: str) -> ObjectStatus | None:
        """
        Ask for size and tag of an object; `None`: it is not there.

        A HEAD has no words for what is missing, so a GET has to confirm it.
        """
        try:
            answer = await self.call("head_object", Key=self.bucket.path(path))
        except BucketError as error:
            if error.error_code not in {"404", "NotFound", MISSING}:
                raise
            found = await self.get(path)
            if found is None:
                return None
            found.stream.close()
            return ObjectStatus(found.size, found.etag)
        if not read_etag(answer) or not isinstance(answer.get("ContentLength"), int):
            raise BucketError(NOT_S3)
        return ObjectStatus(answer["ContentLength"], read_etag(answer))

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Yield path and size of everything below a folder, in the order of the paths."""
        prefix = self.bucket.path(f"{folder}/")
        following: dict[str, str] = {}
        while True:
            answer = await self.call("list_objects_v2", Prefix=prefix, **following)
            if "KeyCount" not in answer and "Contents" not in answer and "Name" not in answer:
                raise BucketError(NOT_S3)
            for entry in answer.get("Contents", []):
                yield folder + "/" + entry["Key"].removeprefix(prefix), entry["Size"]
            if not answer.get("NextContinuationToken"):
                return
            following = {"ContinuationToken": answer["NextContinuationToken"]}

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link and its life: `ttl_s` seconds, or as long as temporary credentials can promise."""
        try:
            if self._credentials is None:
                raise NoCredentialsError  # noqa: TRY301 - as the library would, had it been asked
            # Credentials of a role are renewed by a request, on occasion.
            async with asyncio.timeout(self.timeout_s):
                temporary = (await self._credentials.get_frozen_credentials()).token is not None
                life_s = min(ttl_s, SESSION_TTL_S) if temporary else ttl_s
                url: str = await self._client.generate_presigned_url(
                    "head_object" if head else "get_object",
                    Params={"Bucket": self.bucket.name, "Key": self.bucket.path(path)},
                    ExpiresIn=life_s,
                )
        except Exception as error:  # noqa: BLE001 - see `_call`
            raise self._name(translate_error(error)) from None
        return url, life_s


def read_etag(answer: Mapping[str, Any]) -> str:
    """Return the ETag of an answer without its quotes; empty: there is none."""
    return str(answer.get("ETag") or "").strip('"')


def _is_amazon(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
