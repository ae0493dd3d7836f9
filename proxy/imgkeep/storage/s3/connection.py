"""
The connection to one S3 bucket: every call has a timeout, every failure is a `StorageError` without secrets.

GET, HEAD, and PUT of small objects are requests of our own (`object_requests.py`), because aiobotocore takes two
milliseconds of a processor for each. Everything else is aiobotocore's; so are these where an answer says that the
bucket is in another region, or where another signature is needed than `request_signing.py` has.

This module settles what aiobotocore leaves to its user (measured on 3.10): a PUT that waits for `100 Continue` waits
for ever; a redirect without a region ends in a recursion; its default checksums break other services; a 200 of a proxy
on the way counts as success; and a client does not wait for five attempts of a minute each.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import botocore
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, NoCredentialsError

from imgkeep.storage.bucket.client import ObjectResponse
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.request_limits import ATTEMPTS_MAX, REQUESTS_MAX, RequestLimits
from imgkeep.storage.bucket.response_stream import ResponseStream
from imgkeep.storage.s3.errors import EXISTS, MISSING, NOT_S3, RACED, translate_error
from imgkeep.storage.s3.object_requests import ObjectRequests, OtherRegionError
from imgkeep.storage.s3.request_signing import make_signer
from imgkeep.storage.s3.settings import check_settings, explain, load_certificates, open_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from imgkeep.core.store_url import S3Bucket

T = TypeVar("T")

SESSION_TTL_S: Final = 600
"""Maximum life of a link that temporary credentials sign: botocore renews these ten minutes before they end."""


class S3Connection:
    """
    The connection to one bucket.

    Args:
        observe: Receives operation, outcome and seconds of each call.
    """

    def __init__(self, bucket: S3Bucket, *, timeout_s: float, observe: Callable[[str, str, float], None]) -> None:
        self.bucket = bucket
        self.limits = RequestLimits(
            f"bucket {bucket.name}",
            timeout_s=timeout_s,
            observe=observe,
            translate=translate_error,
            answers=EXISTS | RACED | {MISSING},
        )
        self._stack = AsyncExitStack()
        self._addressing = bucket.addressing
        self._client: Any = None
        self._objects: ObjectRequests | None = None
        self._is_elsewhere = False
        """Whether the library had to find the bucket in another region than the settings name."""
        self._credentials: Any = None

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
            public = await self._make(session, botocore.UNSIGNED)
            self._credentials = await session.get_credentials()
        except (BotoCoreError, ValueError) as error:
            raise explain(error) from None
        signer = await make_signer(self._client, self.bucket.name, self._credentials)
        if signer is not None:
            context = await load_certificates(session) if signer.base_url.startswith("https:") else None
            self._objects = ObjectRequests(self.limits, signer, context)
            await self._objects.open()
        base = await public.generate_presigned_url("get_object", Params={"Bucket": self.bucket.name, "Key": "probe"})
        self._public_base: str = base.removesuffix("/probe")
        self.limits.place = f"bucket {self.bucket.name} at {urlsplit(self._client.meta.endpoint_url).netloc}"

    async def check_settings(self) -> None:
        """Check that a client can be made, without any request. Raises: ConfigError."""
        await check_settings(self._options("s3v4"))

    async def aclose(self) -> None:
        if self._objects is not None:
            await self._objects.aclose()
        await self._stack.aclose()

    def public_url(self, path: str) -> str:
        return f"{self._public_base}/{quote(self.bucket.path(path))}"

    async def _make(self, session: Any, signature: object) -> Any:
        return await self._stack.enter_async_context(session.create_client("s3", **self._options(signature)))

    def _options(self, signature: object) -> dict[str, Any]:
        return {
            "region_name": self.bucket.region,
            "endpoint_url": self.bucket.endpoint,
            "config": AioConfig(
                signature_version=signature,
                connect_timeout=self.limits.timeout_s,
                read_timeout=self.limits.timeout_s,
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
        await self.limits.acquire_slot()
        try:
            return await self._call(operation, parameters)
        finally:
            self.limits.release_slot()

    async def get(self, path: str, **conditions: str) -> ObjectResponse | None:
        """Open an object, or the part of it that `conditions` name; `None`: it is not there. Raises as `call`."""
        key = self.bucket.path(path)
        try:
            return await self._send(
                lambda objects: objects.get(key, conditions), lambda: self._get_by_library(key, conditions)
            )
        except BucketError as error:
            if error.error_code == MISSING:
                return None
            raise

    async def head(self, path: str) -> tuple[int, str]:
        """Return size and ETag of an object. Raises as `call`; no code of a HEAD tells a miss for sure."""
        key = self.bucket.path(path)
        answer = await self._send(lambda objects: objects.head(key), lambda: self.call("head_object", Key=key))
        etag, size = read_etag(answer), answer.get("ContentLength")
        if not etag or size is None:
            raise self.limits.reject_answer(BucketError(NOT_S3))
        return int(size), etag

    async def put(self, path: str, data: bytes, digest: bytes, **fields: str) -> Mapping[str, Any]:
        """Put an object with this MD5 from memory; return the answer. Raises as `call`."""
        key = self.bucket.path(path)
        md5 = b64encode(digest).decode()
        return await self._send(
            lambda objects: objects.put(key, data, digest, fields),
            lambda: self.call("put_object", Key=key, Body=data, ContentLength=len(data), ContentMD5=md5, **fields),
        )

    async def _send(self, own: Callable[[ObjectRequests], Awaitable[T]], by_library: Callable[[], Awaitable[T]]) -> T:
        """Send a request of our own, or by the library where our own are not possible."""
        if self._objects is None or self._is_elsewhere:
            return await by_library()
        try:
            return await own(self._objects)
        except OtherRegionError:
            answer = await by_library()
        self._is_elsewhere = True
        return answer

    async def _get_by_library(self, key: str, conditions: Mapping[str, str]) -> ObjectResponse:
        await self.limits.acquire_slot()
        try:
            answer = await self._call("get_object", {"Key": key, **conditions})
        except BaseException:
            self.limits.release_slot()
            raise
        stream = ResponseStream(answer["Body"], self.limits.timeout_s, self.limits.release_slot)
        if not read_etag(answer) or not isinstance(answer.get("ContentLength"), int):
            stream.close()
            raise self.limits.reject_answer(BucketError(NOT_S3))
        return ObjectResponse(answer["ContentLength"], read_etag(answer), stream)

    async def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        def work() -> Any:
            return getattr(self._client, operation)(Bucket=self.bucket.name, **parameters)

        answer: dict[str, Any] = await self.limits.run(operation, work, parameters.get("Body"))
        return answer

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link and its life in seconds: `ttl_s`, or as long as temporary credentials are sure to last."""
        try:
            if self._credentials is None:
                raise NoCredentialsError  # noqa: TRY301 - as the library raises it for a request
            # botocore renews the credentials of a role by a request, now and then.
            async with asyncio.timeout(self.limits.timeout_s):
                temporary = (await self._credentials.get_frozen_credentials()).token is not None
                life_s = min(ttl_s, SESSION_TTL_S) if temporary else ttl_s
                url: str = await self._client.generate_presigned_url(
                    "head_object" if head else "get_object",
                    Params={"Bucket": self.bucket.name, "Key": self.bucket.path(path)},
                    ExpiresIn=life_s,
                )
        except Exception as error:  # noqa: BLE001 - see `_call`
            raise self.limits.name(translate_error(error)) from None
        return url, life_s


def read_etag(answer: Mapping[str, Any]) -> str:
    """Return the ETag of an answer without its quotes; empty: there is none."""
    return str(answer.get("ETag") or "").strip('"')


def _is_amazon(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
