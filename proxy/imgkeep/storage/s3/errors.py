"""
Errors of a bucket as errors of imgkeep, and their remedies.

No message of the bucket is passed on: it may hold a link, and links are credentials.
"""

from __future__ import annotations

import os
import re
from typing import Final

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from imgkeep.core.errors import ImgkeepError, RemoteFault

MISSING: Final = "NoSuchKey"
"""The code of a missing object. A bare 404 may come from anything before the bucket, and is a fault."""
EXISTS: Final = frozenset({"PreconditionFailed", "412"})
RACED: Final = frozenset({"ConditionalRequestConflict", "409"})

REMEDIES: Final = {
    "AccessDenied": "grant the right in the bucket's policy; without s3:ListBucket a missing object is 403 as well",
    "403": "grant the right in the bucket's policy; without s3:ListBucket a missing object is 403 as well",
    "404": "correct the endpoint, or the bucket's name, in store.url",
    "NoSuchBucket": "create the bucket, or correct its name in store.url",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY, and the region in store.url",
    "AuthorizationHeaderMalformed": "correct the region in store.url",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "ExpiredToken": "renew the temporary credentials",
    "InvalidToken": "correct AWS_SESSION_TOKEN, or remove it",
    "PermanentRedirect": "correct the region, or the endpoint, in store.url",
    "301": "correct the region, or the endpoint, in store.url",
    "InvalidObjectState": "restore what a lifecycle rule has archived, and remove that rule",
    "SlowDown": "wait: the store limits requests",
    "NotImplemented": "the service does not have this; see docs/s3.md",
    "MethodNotAllowed": "the service does not have this; see docs/s3.md",
}
OBJECT_CODES: Final = frozenset(
    {"AccessDenied", "403", "404", "InvalidRequest", "400", "InvalidObjectState", "KeyTooLongError", "BadDigest"}
)
"""Codes that may concern the requested object alone; a probe of the circuit breaker finds out."""

CAUSES_MAX: Final = 8
"""Maximum number of errors in a chain of causes that are examined."""
NOT_S3: Final = "the server at the address of the bucket does not speak S3"

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")


class BucketError(RemoteFault):
    """An error of the bucket, or a missing answer. `error_code` is the code of S3, where there is one."""

    def __init__(self, message: str, error_code: str = "", *, general: bool | None = None, cause: str = "") -> None:
        super().__init__(message, general=error_code not in OBJECT_CODES if general is None else general, cause=cause)
        self.error_code = error_code

    @property
    def remedy(self) -> str | None:
        return REMEDIES.get(self.error_code)


def _cause_of(error: BaseException) -> str:
    """Return why a connection failed, in the words of the system: no URL, and no words of the bucket."""
    for _ in range(CAUSES_MAX):
        inner = getattr(error, "kwargs", {}).get("error") or error.__cause__ or error.__context__
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return "the host does not resolve"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return "the certificate is not valid for the host, or not trusted"
        if isinstance(error, OSError) and error.errno and error.errno > 0:
            return os.strerror(error.errno)
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "the server closed the connection"
        if inner is None:
            break
        error = inner
    return type(error).__name__


def translate_error(error: Exception) -> Exception:
    """Return any error of a call as an error of imgkeep."""
    if isinstance(error, ImgkeepError):
        return error  # of the body that was being sent: the disk failed
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if not _CODE.fullmatch(code):
            code = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        return BucketError(f"the bucket answers {code}", code)
    if isinstance(error, TimeoutError):
        return BucketError("the bucket does not answer within store.timeout_s")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return BucketError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(error, (BotoCoreError, aiohttp.ClientError, OSError)):
        return BucketError("the bucket cannot be reached, or the connection broke off", cause=_cause_of(error))
    # The library fails in many ways on an answer that is not S3: parser errors, missing fields, endless redirects.
    return BucketError(NOT_S3)
