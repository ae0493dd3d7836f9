"""
The client of one bucket: every call has a timeout, every failure is a `StorageError` without secrets.

This module settles what aiobotocore leaves to its user (measured on 3.10): a PUT that waits for `100 Continue` waits
for ever; a redirect without a region ends in a recursion; its default checksums break other services; a 200 of a proxy
on the way counts as success; and a client does not wait for five attempts of a minute each.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import botocore
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, NoCredentialsError

from imgkeep.core.errors import Busy, StorageError
from imgkeep.storage.s3.errors import EXISTS, MISSING, NOT_S3, BucketError, translate_error
from imgkeep.storage.s3.settings import check_settings, explain, open_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from imgkeep.core.store_url import Bucket

REQUESTS_MAX: Final = 128
"""Maximum number of requests under way: twice the number of fills. More would only share the bandwidth."""
QUEUE_TIMEOUT_S: Final = 10
"""Timeout for a request slot."""
ATTEMPTS_MAX: Final = 2
"""Maximum number of attempts: one 500 in a million is normal, two in a row are an outage, for the circuit breaker."""
SESSION_TTL_S: Final = 600
"""Maximum life of a link that temporary credentials sign: botocore renews these ten minutes before they end."""


class ResponseStream:
    """The body of a response. It holds a request slot until its end, or until it is closed."""

    def __init__(self, body: Any, timeout_s: float, release: Callable[[], None]) -> None:
        self._body = body
        self._timeout_s = timeout_s
        self._release = release
        self._open = True

    async def read(self, size: int) -> bytes:
        """
        Read up to `size` bytes; nothing at the end.

        Raises:
            BucketError: It broke off, or sent nothing for `timeout_s`.
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
    """The response to a GET: `size` of its body, `etag` without quotes."""

    size: int
    etag: str
    stream: ResponseStream


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """Size and `etag`, without quotes, of an object, as a HEAD returns them."""

    size: int
    etag: str


class BucketClient:
    """
    The client of one bucket.

    Args:
        observe: Gets operation, outcome and seconds of each call.
    """

    def __init__(self, bucket: Bucket, *, timeout_s: float, observe: Callable[[str, str, float], None]) -> None:
        self.bucket = bucket
        self.place = f"bucket {bucket.name}"
        """Name of the bucket in faults; it has the host once the client is open."""
        self.timeout_s = timeout_s
        self._observe = observe
        self._stack = AsyncExitStack()
        self._slots = asyncio.Semaphore(REQUESTS_MAX)
        self._addressing = bucket.addressing
        self._client: Any = None
        self._public: Any = None
        self._credentials: Any = None
        self.answered_at = float("-inf")
        """Time of the last proper answer of the bucket, on the loop's clock."""

    async def open(self) -> None:
        """
        Make the client. It sends no request, except for credentials of a machine's role.

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
                # By default botocore signs links to a global host, which learns of new buckets late.
                self._addressing = "virtual"
                self._client = await self._make(session, "s3v4")
            self._public = await self._make(session, botocore.UNSIGNED)
            self._credentials = await session.get_credentials()
        except (BotoCoreError, ValueError) as error:
            raise explain(error) from None
        base = await self._public.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket.name, "Key": "probe"}
        )
        self.public_base: str = base.removesuffix("/probe")
        self.place = f"bucket {self.bucket.name} at {urlsplit(self._client.meta.endpoint_url).netloc}"

    async def check_settings(self) -> None:
        """Check that a client can be made, without any request. Raises: ConfigError."""
        await check_settings(self._options("s3v4"))

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def _acquire_slot(self) -> None:
        # A wait for a slot is no fault of the bucket, so it has a timeout of its own.
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._slots.acquire()
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
        except Exception as error:  # noqa: BLE001 - each is translated, at least to "not S3"
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
        """Add the bucket's name to a fault."""
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
                max_pool_connections=REQUESTS_MAX,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
                # Not every service understands the defaults of 2025; the MD5 and SHA-256 of imgkeep check more.
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
        await self._acquire_slot()
        try:
            return await self._call(operation, parameters)
        finally:
            self._slots.release()

    async def get(self, path: str, **conditions: str) -> ObjectResponse | None:
        """Open an object, or the part of it that `conditions` name; `None`: it is not there. Raises as `call`."""
        await self._acquire_slot()
        try:
            answer = await self._call("get_object", {"Key": self.bucket.path(path), **conditions})
        except BaseException as error:
            self._slots.release()
            if isinstance(error, BucketError) and error.error_code == MISSING:
                return None
            raise
        stream = ResponseStream(answer["Body"], self.timeout_s, self._slots.release)
        if not read_etag(answer) or not isinstance(answer.get("ContentLength"), int):
            stream.close()
            raise BucketError(NOT_S3)
        return ObjectResponse(answer["ContentLength"], read_etag(answer), stream)

    async def stat(self, path: str) -> ObjectStatus | None:
        """
        Ask for size and ETag of an object; `None`: it is not there.

        The answer to a HEAD does not tell whether the object or the bucket is missing, so a GET has to confirm a 404.
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

    async def quarantine(self, path: str, etag: str) -> None:
        """
        Copy an object to `damaged/` and delete it, for buckets have no rename; but only while it has this ETag.

        Raises:
            StorageError: It may still be there.
        """
        key = self.bucket.path(path)
        target = self.bucket.path(f"damaged/{path.rpartition('/')[2]}.{token_hex(4)}")
        source = {"Bucket": self.bucket.name, "Key": key}
        try:
            copied = await self.call("copy_object", Key=target, CopySource=source, CopySourceIfMatch=f'"{etag}"')
        except BucketError as error:
            if error.error_code in EXISTS | {MISSING}:
                return  # another process was quicker, or has put a good one in its place
            raise
        if not read_etag(copied.get("CopyObjectResult", {})):
            raise BucketError(NOT_S3)
        stat = await self.stat(path)
        if stat is not None and stat.etag == etag:
            await self.call("delete_object", Key=key)

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link and its life in seconds: `ttl_s`, or as long as temporary credentials are sure to last."""
        try:
            if self._credentials is None:
                raise NoCredentialsError  # noqa: TRY301 - as the library raises it for a request
            # botocore renews the credentials of a role by a request, now and then.
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
