"""
Errors of Azure Blob Storage as errors of imgkeep, and their remedies.

No message of the service is passed on: it may hold a link, and links are credentials.
"""

from __future__ import annotations

import re
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from imgkeep.storage.azure.settings import AccountKey, MachineIdentity, SasToken
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from imgkeep.storage.azure.settings import Credentials

CODE_FIELD: Final = "x-ms-error-code"
MISSING: Final = "BlobNotFound"
"""The code of a missing blob. A bare 404 may come from anything before the service, and is a fault."""
EXISTS: Final = frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"})
CHANGED: Final = frozenset({"ConditionNotMet", "SourceConditionNotMet", "CannotVerifyCopySource"})
"""Codes of a copy or a deletion whose blob is another version by now, or gone."""
ANSWERS: Final = EXISTS | CHANGED | {MISSING}
"""Codes that come from a container that works."""

AUTHENTICATION: Final = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"})
CLOCK_SKEW_MAX: Final = timedelta(minutes=15)
"""Maximum difference between a request's date and the service's clock ("Authorize with Shared Key")."""

_RIGHTS: Final = "assign the role Storage Blob Data Contributor on the container, or renew the SAS with sp=racwdl"
REMEDIES: Final = {
    "AccountIsDisabled": "enable the subscription of the storage account",
    "AuthorizationFailure": "correct the key, or allow this machine in the firewall of the storage account; " + _RIGHTS,
    "AuthorizationPermissionMismatch": _RIGHTS + "; a new role takes some minutes",
    "AuthorizationProtocolMismatch": "use https in the connection string: the SAS allows nothing else",
    "AuthorizationResourceTypeMismatch": "renew the SAS for the resource types container and object (srt=co)",
    "AuthorizationServiceMismatch": "renew the SAS for the service blob (ss=b)",
    "AuthorizationSourceIPMismatch": "renew the SAS for the address of this machine",
    "BlobArchived": "rehydrate the blob to a tier that is online, and remove the lifecycle rule that archives",
    "BlobBeingRehydrated": "wait until the blob is rehydrated, and remove the lifecycle rule that archives",
    "BlobImmutableDueToPolicy": "remove the immutability policy or the legal hold of the container",
    "ContainerBeingDeleted": "wait for half a minute, and create the container again",
    "ContainerDisabled": "ask Microsoft's support why the container is disabled",
    "ContainerNotFound": "create the container, or correct its name in store.url",
    "FeatureVersionMismatch": "see that the account is a general-purpose v2 account; docs/azure.md",
    "InsufficientAccountPermissions": _RIGHTS,
    "InvalidHeaderValue": "see that the service knows the version of the API; docs/azure.md",
    "KeyBasedAuthenticationNotPermitted": "the account forbids its keys: unset AZURE_STORAGE_KEY, and use an identity",
    "KeyVaultEncryptionKeyNotFound": "restore the key in the vault that encrypts the account",
    "LeaseIdMissing": "break the lease of the blob",
    "PublicAccessNotPermitted": "allow anonymous access in the account, or use delivery.mode presign",
    "ServerBusy": "wait: the storage account limits requests",
    "OperationTimedOut": "wait: the service is slow",
    "InternalError": "wait: the service has a fault",
    "UnauthorizedBlobOverwrite": _RIGHTS,
    "UnsupportedHeader": "see that the account is a general-purpose v2 account; docs/azure.md",
}
OBJECT_CODES: Final = frozenset(
    {
        "400",
        "403",
        "404",
        "AuthorizationPermissionMismatch",
        "BlobArchived",
        "BlobBeingRehydrated",
        "BlobImmutableDueToPolicy",
        "InternalError",
        "InvalidBlobType",
        "InvalidBlockId",
        "InvalidBlockList",
        "InvalidBlobOrBlock",
        "InvalidInput",
        "InvalidRange",
        "InvalidResourceName",
        "LeaseIdMissing",
        "Md5Mismatch",
        "OperationTimedOut",
        "OutOfRangeInput",
        "PendingCopyOperation",
        "RequestBodyTooLarge",
        "UnauthorizedBlobOverwrite",
        *ANSWERS,
    }
)
"""Codes that may concern the requested blob alone; a probe of the circuit breaker finds out."""

NOT_AZURE: Final = "the server at the address of the container does not speak the API of Azure Blob Storage"

_CODE: Final = re.compile(r"[A-Za-z0-9]{1,64}")


def make_error(status: int, headers: Mapping[str, str], credentials: Credentials, now: datetime) -> BucketError:
    """Return the error that a response means."""
    code = headers.get(CODE_FIELD, "")
    if not _CODE.fullmatch(code):
        code = str(status)
    remedy = REMEDIES.get(code)
    if code in AUTHENTICATION:
        remedy = _authentication_remedy(credentials, headers.get("Date", ""), now)
    elif code == str(status):
        remedy = "see what answers in place of the service: a portal, a proxy or another server"
    return BucketError(f"the container answers {code}", code, general=code not in OBJECT_CODES, remedy=remedy)


def _authentication_remedy(credentials: Credentials, date: str, now: datetime) -> str:
    try:
        skew = abs(parsedate_to_datetime(date) - now)
    except (TypeError, ValueError):
        skew = timedelta()
    if skew > CLOCK_SKEW_MAX:
        return "set the clock of this machine"
    match credentials:
        case AccountKey():
            return "correct the account and its key; a rotated key no longer works"
        case SasToken():
            return "renew the SAS: it has expired, is not valid yet, or is signed by another key"
        case MachineIdentity():
            return "see that the identity is of the tenant of the storage account"
