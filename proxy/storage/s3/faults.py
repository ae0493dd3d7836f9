"""
What a bucket can answer instead of what was asked: as our error, and what helps.

No message of theirs is passed on: it may hold a link, and links are credentials.
"""

from __future__ import annotations

import re
from typing import Final

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from proxy.core.errors import ImgkeepError, RemoteFault

MISSING: Final = "NoSuchKey"
"""The one word for it. A bare 404 may come from anything that stands before the bucket, and is a fault."""
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
PARTICULAR: Final = frozenset(
    {"AccessDenied", "403", "404", "InvalidRequest", "400", "InvalidObjectState", "KeyTooLongError", "BadDigest"}
)
"""May concern what was asked for alone; a trial tells whether it does."""

NOT_S3: Final = "what answers under the address of the bucket is not S3"

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")


class BucketError(RemoteFault):
    """The bucket answered with an error, or did not answer. `error_code` is S3's, where there is one."""

    def __init__(self, message: str, error_code: str = "", *, general: bool | None = None) -> None:
        super().__init__(message, general=error_code not in PARTICULAR if general is None else general)
        self.error_code = error_code

    @property
    def remedy(self) -> str | None:
        return REMEDIES.get(self.error_code)


def fault_of(error: Exception) -> Exception:
    """Turn whatever a call raised into ours."""
    if isinstance(error, ImgkeepError):
        return error  # of a body that was being sent: the disk's
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
        return BucketError("the bucket cannot be reached, or the connection broke off")
    # What the library makes of an answer that is no answer of S3: parser errors, missing fields, endless redirects.
    return BucketError(NOT_S3)
