"""
Errors of Google Cloud Storage as errors of imgkeep, and their remedies.

A code is the `reason` of a JSON error, else what a status means. No message of the service is passed on, but for the
name of the permission that is missing.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING: Final = "noSuchObject"
"""Code of imgkeep's for a missing object: the service says `notFound` of buckets too."""
NO_BUCKET: Final = "noSuchBucket"
UNCLEAR: Final = frozenset({"notFound", "404"})
"""Codes that do not tell whether the object or the bucket is missing, or whether a proxy answers."""
EXISTS: Final = "conditionNotMet"
UNAUTHORIZED: Final = "401"
"""Code of a token that is not valid, or not any more, whatever the reason."""
LIMITED: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})

_GRANT: Final = (
    "grant the role Storage Object User (roles/storage.objectUser) on the bucket to the account of these credentials"
)
REMEDIES: Final = {
    UNAUTHORIZED: "set the clock of this machine, and see that the account and its key are enabled",
    "forbidden": _GRANT,
    "insufficientPermissions": "give the machine the access scope cloud-platform, or devstorage.read_write",
    NO_BUCKET: "create the bucket, or correct its name in store.url",
    "404": "correct the bucket's name in store.url, or STORAGE_EMULATOR_HOST; is a proxy in between?",
    "302": "connect this machine to the internet: a portal or a proxy answers in place of the service",
    "accountDisabled": "enable billing for the project of the bucket",
    "userProjectMissing": "turn Requester Pays off for the bucket",
    "retentionPolicyNotMet": "remove the bucket's retention policy, or wait for its end: imgkeep replaces records",
    "objectUnderActiveHold": "release the holds on the objects of the bucket",
    "rateLimitExceeded": "wait: the service limits requests, and writes of one object to one a second",
    "userRateLimitExceeded": "wait: the service limits requests",
}
OBJECT_CODES: Final = frozenset(
    {
        *LIMITED,
        *UNCLEAR,
        EXISTS,
        "forbidden",
        "invalid",
        "invalidArgument",
        "400",
        "retentionPolicyNotMet",
        "objectUnderActiveHold",
        "requestedRangeNotSatisfiable",
        "internalError",
        "500",
    }
)
"""Codes that may concern the requested object alone; a probe of the circuit breaker finds out."""

_REASONS: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: UNAUTHORIZED,
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.PRECONDITION_FAILED: EXISTS,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "requestedRangeNotSatisfiable",
    HTTPStatus.TOO_MANY_REQUESTS: "rateLimitExceeded",
}
"""What a status means where there is no JSON: the errors of a download are plain text."""

NOT_GCS: Final = "the server at the address of the bucket does not speak the API of Google Cloud Storage"

UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What reading JSON of another form raises: also for text that is no UTF-8, and for JSON that is too deep."""

_CODE: Final = re.compile(r"[A-Za-z0-9]{1,64}")
_PERMISSION: Final = re.compile(r"\bstorage\.(?:objects|buckets|folders|managedFolders)\.[A-Za-z]{1,32}\b")
_NO_OBJECT: Final = "No such object: "
_NO_BUCKET: Final = "The specified bucket does not exist"


class _Cause(msgspec.Struct):
    reason: str = ""


class _Error(msgspec.Struct):
    message: str = ""
    errors: list[_Cause] = msgspec.field(default_factory=list)


class _ErrorBody(msgspec.Struct):
    error: _Error


def make_error(code: str, *, permission: str = "") -> BucketError:
    """Return the error that a code means; `permission` is what the service says is missing."""
    remedy = REMEDIES.get(code)
    if permission:
        remedy = f"grant {permission} on the bucket; the role Storage Object User (roles/storage.objectUser) has it"
    return BucketError(f"the bucket answers {code}", code, general=code not in OBJECT_CODES, remedy=remedy)


def read_error(status: int, _headers: Mapping[str, str], body: bytes) -> BucketError:
    """Return the error that a response means."""
    try:
        found = msgspec.json.decode(body, type=_ErrorBody).error
    except UNREADABLE:
        found = _Error(body[:1024].decode("utf-8", "replace"))
    if status == HTTPStatus.NOT_FOUND:
        if found.message.startswith(_NO_OBJECT):
            return make_error(MISSING)
        if found.message.startswith(_NO_BUCKET):
            return make_error(NO_BUCKET)
    reasons = (cause.reason for cause in found.errors if _CODE.fullmatch(cause.reason))
    code = next(reasons, None) or _REASONS.get(status) or str(status)
    if status == HTTPStatus.UNAUTHORIZED:
        code = UNAUTHORIZED
    permission = _PERMISSION.search(found.message) if status == HTTPStatus.FORBIDDEN else None
    return make_error(code, permission=permission[0] if permission else "")
