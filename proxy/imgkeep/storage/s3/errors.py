"""
Errors of S3 as errors of imgkeep, and their remedies.

No message of the bucket is passed on: it may hold a link, and links are credentials.
"""

from __future__ import annotations

import re
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from imgkeep.storage.bucket.connection_causes import cause_of
from imgkeep.storage.bucket.errors import UNREACHABLE, BucketError
from imgkeep.storage.bucket.http_requests import translate_http_error

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
    "XAdminUserNotFound": "correct AWS_ACCESS_KEY_ID",  # VersityGW
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
GENERAL_CODES: Final = frozenset(
    {
        *("NoSuchBucket", "InvalidBucketName", "AllAccessDisabled", "AccountProblem", "401"),
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed"),
        *("XAdminUserNotFound", "ExpiredToken", "InvalidToken"),
        *("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "302", "307", "308"),
        *("SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "TooManyRequests"),
        *("429", "502", "503", "504", "507"),
    }
)
"""
Codes that concern all requests: of the bucket, the credentials, the clock, the region, and the load. Every other one
may concern the requested object alone, an InternalError included; a probe of the circuit breaker finds out.
"""

NOT_S3: Final = "the server at the address of the bucket does not speak S3"

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")


def make_error(message: str, code: str) -> BucketError:
    """Return the error that a code of S3 means."""
    return BucketError(message, code, general=code in GENERAL_CODES, remedy=REMEDIES.get(code))


def translate_error(error: Exception) -> Exception:
    """Return any error of a call as an error of imgkeep."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if not _CODE.fullmatch(code):
            code = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        return make_error(f"the bucket answers {code}", code)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return BucketError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(error, BotoCoreError):
        return BucketError(UNREACHABLE, cause=cause_of(error))
    # The library fails in many ways on an answer that is not S3: parser errors, missing fields, endless redirects.
    return translate_http_error(error, foreign=NOT_S3)
