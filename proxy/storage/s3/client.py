"""
One bucket: every call has a time limit, every failure is a `StorageError` without secrets.

What aiobotocore leaves to its user and is settled here (measured on 3.10): a PUT that waits for `100 Continue` waits
for ever; a redirect without a region ends in a recursion; the checksums that are its default break other services; what
a proxy on the way answers with 200 counts as success; and five attempts of a minute each are more than a visitor has.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
import botocore.session
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.parsers import ResponseParserError

from proxy.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from proxy.core.store_url import Bucket

CONNECTIONS_MAX: Final = 64
"""As many as fills at a time; more only wait for each other's bandwidth."""
ATTEMPTS_MAX: Final = 2
"""One 500 in a million is normal, two in a row are an outage; the breaker and the outbox do the rest."""
SESSION_TTL_S: Final = 600
"""Temporary credentials are renewed ten minutes before they end (botocore): a link signed with them lives no longer."""

MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
EXISTS: Final = frozenset({"PreconditionFailed", "412"})

REMEDIES: Final = {
    "AccessDenied": "grant the right in the bucket's policy; without s3:ListBucket a missing object is 403 as well",
    "403": "grant the right in the bucket's policy; without s3:ListBucket a missing object is 403 as well",
    "NoSuchBucket": "create the bucket, or correct its name in store.url",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY, and the region in store.url",
    "AuthorizationHeaderMalformed": "correct the region in store.url",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "ExpiredToken": "renew the temporary credentials",
    "InvalidToken": "correct AWS_SESSION_TOKEN, or remove it",
    "PermanentRedirect": "correct the region, or the endpoint, in store.url",
    "301": "correct the region, or the endpoint, in store.url",
    "SlowDown": "wait: the store limits requests",
    "NotImplemented": "the service does not have this; see docs/s3.md",
    "MethodNotAllowed": "the service does not have this; see docs/s3.md",
}

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")


class BucketError(StorageError):
    """The bucket answered with an error, or did not answer. `error_code` is S3's, where there is one."""

    def __init__(self, message: str, error_code: str = "") -> None:
        super().__init__(message)
        self.error_code = error_code

    @property
    def remedy(self) -> str | None:
        return REMEDIES.get(self.error_code)


@dataclass(frozen=True, slots=True)
class Stat:
    """What a HEAD tells of an object; `etag` without quotes."""

    size: int
    etag: str


class BucketClient:
    """Calls on one bucket. `observe` is told operation, outcome and seconds of each."""

    def __init__(self, bucket: Bucket, *, timeout_s: float, observe: Callable[[str, str, float], None]) -> None:
        self.bucket = bucket
        self.timeout_s = timeout_s
        self._observe = observe
        self._stack = AsyncExitStack()
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
            StorageError: The AWS configuration of this machine is not usable.
        """
        session = get_session()
        # Reads some hundred kilobytes of JSON, the first time: not on the event loop.
        await asyncio.to_thread(_prepare, session)
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
            raise BucketError(f"the AWS settings are not usable: {type(error).__name__}") from None
        base = await self._public.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket.name, "Key": "probe"}
        )
        self.public_base: str = base.removesuffix("/probe")

    async def aclose(self) -> None:
        await self._stack.aclose()

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
                max_pool_connections=CONNECTIONS_MAX,
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
        """
        loop = asyncio.get_running_loop()
        start, outcome = loop.time(), "error"
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                body: Any = parameters.get("Body")
                if hasattr(body, "progress"):
                    body.progress = lambda: limit.reschedule(loop.time() + self.timeout_s)
                answer: dict[str, Any] = await getattr(self._client, operation)(Bucket=self.bucket.name, **parameters)
            outcome = "ok"
        except BaseException as error:
            failure = _failure(error)
            if failure is None:
                raise
            outcome = failure.error_code or "unreachable"
            if failure.error_code in MISSING | EXISTS:
                self.answered_at = loop.time()
            raise failure from None
        finally:
            self._observe(operation, outcome, loop.time() - start)
        self.answered_at = loop.time()
        return answer

    async def stat(self, path: str) -> Stat | None:
        """Ask for size and tag of an object; `None`: it is not there."""
        try:
            answer = await self.call("head_object", Key=self.bucket.path(path))
        except BucketError as error:
            if error.error_code in MISSING:
                return None
            raise
        etag = tag_of(answer)
        if not etag:
            raise BucketError("what answers under the address of the bucket is not S3")
        return Stat(answer["ContentLength"], etag)

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Yield path and size of everything below a folder, in the order of the paths."""
        prefix = self.bucket.path(f"{folder}/")
        following: dict[str, str] = {}
        while True:
            answer = await self.call("list_objects_v2", Prefix=prefix, **following)
            if "KeyCount" not in answer and "Contents" not in answer and "Name" not in answer:
                raise BucketError("what answers under the address of the bucket is not S3")
            for entry in answer.get("Contents", []):
                yield folder + "/" + entry["Key"].removeprefix(prefix), entry["Size"]
            if not answer.get("NextContinuationToken"):
                return
            following = {"ContinuationToken": answer["NextContinuationToken"]}

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        """Return a link and its life: `ttl_s` seconds, or as long as temporary credentials can promise."""
        try:
            if self._credentials is None:
                raise NoCredentialsError
            temporary = (await self._credentials.get_frozen_credentials()).token is not None
            life_s = min(ttl_s, SESSION_TTL_S) if temporary else ttl_s
            url: str = await self._client.generate_presigned_url(
                "head_object" if head else "get_object",
                Params={"Bucket": self.bucket.name, "Key": self.bucket.path(path)},
                ExpiresIn=life_s,
            )
        except BotoCoreError as error:
            raise _failure(error) or error from None
        return url, life_s


def tag_of(answer: Mapping[str, Any]) -> str:
    """Return the ETag of an answer without its quotes; empty: there is none."""
    return str(answer.get("ETag") or "").strip('"')


def _failure(error: BaseException) -> BucketError | None:
    """Turn what a call can raise into ours; `None`: it is not of that kind. No message of theirs is passed on."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        code = code if _CODE.fullmatch(code) else str(error.response["ResponseMetadata"].get("HTTPStatusCode", ""))
        return BucketError(f"the bucket answers {code}", code)
    if isinstance(error, TimeoutError):
        return BucketError("the bucket does not answer within store.timeout_s")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return BucketError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(error, RecursionError | ResponseParserError):
        return BucketError("what answers under the address of the bucket is not S3, or leads elsewhere")
    if isinstance(error, (BotoCoreError, aiohttp.ClientError, OSError)):
        return BucketError("the bucket cannot be reached, or the connection broke off")
    return None


def _is_amazon(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _prepare(session: Any) -> None:
    """Let a session have its data and settings at hand. Blocks, the first time."""
    session.register_component("data_loader", _loader())
    _ = session.full_config


@cache
def _loader() -> Any:
    """Read what clients are made from: a loader remembers it, and a client that is made for nothing asks for it all."""
    session = botocore.session.Session()
    session.create_client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")  # noqa: S106
    return session.get_component("data_loader")
