"""
Links to blobs with a shared access signature, by azure-storage-blob.

The key of the account signs them; without it a user delegation key, which the service gives to an identity. A SAS of
the operator signs nothing: appended to a link, it would give every reader its rights, and imgkeep needs one that may
write.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Final, assert_never
from urllib.parse import urlsplit

from imgkeep.storage.azure.errors import CLOCK_SKEW_MAX, NOT_AZURE
from imgkeep.storage.azure.settings import AccountKey, MachineIdentity, SasToken
from imgkeep.storage.azure.xml_elements import read_elements
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from azure.storage.blob import UserDelegationKey

    from imgkeep.clock import Clock
    from imgkeep.storage.azure.settings import StorageAccount

KEY_LIFE: Final = timedelta(days=1)
"""Life of a user delegation key besides that of the links that it signs: one request a day."""
KEY_LIFE_MAX: Final = timedelta(days=7, hours=-1)
"""Maximum life of such a key: the service takes seven days, by its own clock."""
KEY_BYTES_MAX: Final = 16_384

_FIELDS: Final = {
    "SignedOid": "signed_oid",
    "SignedTid": "signed_tid",
    "SignedStart": "signed_start",
    "SignedExpiry": "signed_expiry",
    "SignedService": "signed_service",
    "SignedVersion": "signed_version",
    "Value": "value",
}


@dataclass(frozen=True, slots=True)
class _DelegationKey:
    key: UserDelegationKey
    ends_at: datetime


class LinkSigner:
    """
    Signs links to blobs of one container.

    Args:
        account: The storage account.
        container: Name of the container.
        clock: Returns the time.
        request_key: Sends the document of "Get User Delegation Key", and returns its answer.
    """

    def __init__(
        self, account: StorageAccount, container: str, *, clock: Clock, request_key: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        self._account = account
        self._container = container
        self._clock = clock
        self._request_key = request_key
        self._delegation: _DelegationKey | None = None

    async def sign(self, blob: str, ttl_s: int) -> tuple[str, int]:
        """
        Return the query of a link that reads a blob, and its life in seconds, `ttl_s` at most.

        Raises:
            BucketError: Nothing can sign it.
        """
        # Almost a second of imports, the first time: where links are signed, and not on the event loop.
        await asyncio.to_thread(import_module, "azure.storage.blob")
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas  # noqa: PLC0415

        now = self._clock().replace(microsecond=0)
        ends_at = now + timedelta(seconds=ttl_s)
        account_key, delegation_key = None, None
        match self._account.credentials:
            case AccountKey(value):
                account_key = b64encode(value).decode()
            case MachineIdentity():
                delegation = await self._find_key(now, timedelta(seconds=ttl_s))
                delegation_key, ends_at = delegation.key, min(ends_at, delegation.ends_at)
            case SasToken():
                raise BucketError(
                    "a SAS cannot sign links, and as a part of them it would give every reader its rights",
                    general=False,
                    remedy="use an account key or an identity, or delivery.mode serve or redirect",
                )
            case unknown:
                assert_never(unknown)
        query = generate_blob_sas(
            self._account.name,
            self._container,
            blob,
            account_key=account_key,
            user_delegation_key=delegation_key,
            permission=BlobSasPermissions(read=True),
            expiry=ends_at,
            protocol="https" if urlsplit(self._account.endpoint).scheme == "https" else None,
        )
        return query, int((ends_at - now).total_seconds())

    async def _find_key(self, now: datetime, life: timedelta) -> _DelegationKey:
        """Return a user delegation key that outlives a link, if the service gives such a one."""
        # Concurrent calls may request several keys, and each works: once a day.
        found = self._delegation
        if found is None or found.ends_at - now < min(life, KEY_LIFE_MAX - KEY_LIFE):
            ends_at = now + min(life + KEY_LIFE, KEY_LIFE_MAX)
            # From the past on: the clock of the service may be behind.
            start, expiry = (f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in (now - CLOCK_SKEW_MAX, ends_at))
            document = f"<KeyInfo><Start>{start}</Start><Expiry>{expiry}</Expiry></KeyInfo>"
            answer = await self._request_key(document.encode())
            found = self._delegation = _DelegationKey(_read_key(answer), ends_at)
        return found


def _read_key(answer: bytes) -> UserDelegationKey:
    from azure.storage.blob import UserDelegationKey  # noqa: PLC0415 - as above

    key = UserDelegationKey()  # type: ignore[no-untyped-call]
    try:
        found = {element.path.rpartition("/")[2]: element.text for element in read_elements(answer)}
    except ValueError:
        raise BucketError(NOT_AZURE) from None
    for name, attribute in _FIELDS.items():
        if not found.get(name):
            raise BucketError(NOT_AZURE)
        setattr(key, attribute, found[name])
    return key
