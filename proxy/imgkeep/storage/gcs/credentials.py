"""
The credentials of a bucket: Google's library reads, renews and signs with them, in threads.

Rules:
- One renewal runs at a time; requests that need its token wait for it, and a request that is cancelled does not end it.
- A token that soon ends is renewed in the background, while requests go on with it.
- No error holds a token, a key, or words of a server.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import google.auth
from google.auth import exceptions, iam, impersonated_credentials
from google.auth.credentials import (
    DEFAULT_UNIVERSE_DOMAIN,
    AnonymousCredentials,
    CredentialsWithUniverseDomain,
    Signing,
    TokenState,
)
from google.oauth2 import service_account

from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.gcs.credential_requests import Transport, Unanswered
from imgkeep.storage.gcs.settings import SCOPES, SERVICE, VARIABLE, find_credentials
from imgkeep.storage.gcs.signed_urls import TTL_S_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.auth.credentials import Credentials

WAIT_SHARE: Final = 0.8
"""Share of a request's timeout that its token may take, so that the error names what was slow."""
SIGNERS_MAX: Final = 4
"""Maximum number of links that are signed at a time: each takes a millisecond of CPU, or a request."""
RENEW_AGAIN_S: Final = 10
"""Time after a renewal in which a token that soon ends is not renewed again: servers give such tokens, too."""
SERVICE_KEY_TTL_S_MAX: Final = 43_200
"""Maximum life of a link that the service signs: it changes its keys, and promises twelve hours of each."""

NO_CREDENTIALS: Final = "there are no credentials"
NO_CREDENTIALS_REMEDY: Final = (
    f"set {VARIABLE} to a file with credentials, or give this machine a service account; docs/gcs.md"
)
NO_SIGNATURE: Final = "the service that signs does not answer within store.timeout_s"
NO_KEY: Final = "these credentials cannot sign links"
NO_KEY_REMEDY: Final = "use those of a service account: with a key, of a machine, or impersonated; docs/gcs.md"

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_CODE: Final = re.compile(r"[a-z_]{1,40}")
_TOKEN_REMEDIES: Final = {
    "invalid_grant": "set the clock of this machine; see that the key or the login was not revoked",
    "invalid_client": "create the file with credentials anew",
    "unauthorized_client": "create the file with credentials anew",
    "invalid_scope": "see that the account may use Cloud Storage",
}


class GcsCredentials:
    """
    The credentials of one bucket.

    Args:
        timeout_s: Timeout for a request that needs a token.
        make_transport: Makes the transport for some work of the library, with a timeout for it.
    """

    def __init__(self, *, timeout_s: float, make_transport: Callable[[float], Transport] = Transport) -> None:
        self._wait_s = timeout_s * WAIT_SHARE
        self._make_transport = make_transport
        self._credentials: Credentials | None = None
        self._renewal: asyncio.Task[dict[str, str]] | None = None
        self._renewed_at = float("-inf")
        self._refused_token: str | None = None
        # Its own threads: a service that hangs must not stop what others do in the loop's.
        self._signers = ThreadPoolExecutor(SIGNERS_MAX, "sign-links")

    async def open(self, service: str) -> None:
        """
        Read the file with credentials, if there is one. An emulator at `service` needs none, and gets none over a
        network without TLS.

        Raises:
            ConfigError: The file cannot be used.
        """
        found = await asyncio.to_thread(find_credentials)
        is_open = (found is None and service != SERVICE) or not _is_private(service)
        self._credentials = AnonymousCredentials() if is_open else found

    async def aclose(self) -> None:
        """Wait for a renewal that a cancelled request has left, as long as a request would."""
        if self._renewal is not None:
            await asyncio.wait([self._renewal], timeout=self._wait_s)
        self._signers.shutdown(wait=False, cancel_futures=True)

    @property
    def can_sign(self) -> bool:
        """Whether they may be able to sign links; those of a machine are not known yet."""
        is_of_machine = self._credentials is None
        return is_of_machine or _account_of(self._credentials) is not None

    async def headers(self) -> dict[str, str]:
        """
        Return the header fields of a request that needs a token.

        Raises:
            BucketError: There is no token.
        """
        if isinstance(self._credentials, AnonymousCredentials):
            return {}
        credentials = self._credentials
        state = TokenState.INVALID if credentials is None else credentials.token_state
        if credentials is None or state is TokenState.INVALID or credentials.token == self._refused_token:
            return await self._wait_for(self._renew())
        if state is TokenState.STALE and asyncio.get_running_loop().time() - self._renewed_at > RENEW_AGAIN_S:
            self._renew()
        return _fields_of(credentials)

    def refuse(self, fields: dict[str, str]) -> bool:
        """Use a token no more that the service refused; tell whether another may come."""
        scheme, _, token = fields.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            return False
        self._refused_token = token
        return True

    async def find_account(self) -> str:
        """
        Return the address of the service account that signs.

        Raises:
            BucketError: There is none.
        """
        if not isinstance(self._credentials, Signing):
            await self.headers()  # only then is the account of a machine known
        account = _account_of(self._credentials)
        if account is None:
            raise BucketError(NO_KEY, general=False, remedy=NO_KEY_REMEDY)
        return account

    async def sign(self, text: bytes, account: str) -> bytes:
        """
        Sign with the key of the account, or by the service where there is no key.

        Raises:
            BucketError: The service does not sign.
        """
        credentials: Any = self._credentials
        transport = self._make_transport(self._wait_s)

        def sign() -> bytes:
            source = _source_of(credentials)
            if source is None:
                return bytes(credentials.sign_bytes(text))
            return bytes(iam.Signer(transport, source, account).sign(text))

        try:
            async with asyncio.timeout(self._wait_s):
                return await asyncio.get_running_loop().run_in_executor(self._signers, sign)
        except TimeoutError:
            raise BucketError(NO_SIGNATURE, general=False) from None
        except Exception as error:  # noqa: BLE001 - each is translated
            raise _explain_signing(error) from None

    @property
    def link_ttl_s_max(self) -> int:
        """Maximum life of a link that they sign."""
        has_key = isinstance(self._credentials, service_account.Credentials)
        return TTL_S_MAX if has_key else SERVICE_KEY_TTL_S_MAX

    async def _wait_for(self, renewal: asyncio.Task[dict[str, str]]) -> dict[str, str]:
        try:
            async with asyncio.timeout(self._wait_s):
                return await asyncio.shield(renewal)
        except TimeoutError:
            raise BucketError("the server for tokens does not answer within store.timeout_s") from None

    def _renew(self) -> asyncio.Task[dict[str, str]]:
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew_in_thread())
            self._renewal.add_done_callback(self._end_renewal)
        return self._renewal

    def _end_renewal(self, renewal: asyncio.Task[dict[str, str]]) -> None:
        self._renewal = None
        self._renewed_at = renewal.get_loop().time()
        if not renewal.cancelled():
            renewal.exception()  # the request that waited for it may be gone

    async def _renew_in_thread(self) -> dict[str, str]:
        try:
            return await asyncio.to_thread(self._renew_blocking, self._make_transport(self._wait_s))
        except Exception as error:  # noqa: BLE001 - each is translated
            raise _explain(error) from None

    def _renew_blocking(self, transport: Transport) -> dict[str, str]:
        if self._credentials is None:
            self._credentials = _ask_machine(transport)
        self._credentials.refresh(transport)
        return _fields_of(self._credentials)


def _is_private(service: str) -> bool:
    """Tell whether no other machine can read a token on its way."""
    parts = urlsplit(service)
    return parts.scheme == "https" or parts.hostname in LOOPBACK


def _source_of(credentials: Any) -> Any:
    """
    Return the credentials with which the service is asked for a signature; `None`: they sign by themselves.

    An impersonation would sign by requests past the transport, which hold a thread for minutes. A chain of delegates
    leaves no other way.
    """
    if isinstance(credentials, impersonated_credentials.Credentials) and not credentials._delegates:  # noqa: SLF001 - see above
        return credentials._source_credentials  # noqa: SLF001 - see above
    return None if isinstance(credentials, Signing) else credentials


def _ask_machine(transport: Transport) -> Credentials:
    """Return the credentials of the machine, from its metadata server. Raises: DefaultCredentialsError."""
    try:
        credentials, _ = google.auth.default(scopes=SCOPES, request=transport)
    except Unanswered:
        raise exceptions.DefaultCredentialsError from None
    # The library would ask the machine for the domain of all services, past this transport; here it is fixed.
    if isinstance(credentials, CredentialsWithUniverseDomain):
        credentials = credentials.with_universe_domain(DEFAULT_UNIVERSE_DOMAIN)
    return credentials


def _fields_of(credentials: Any) -> dict[str, str]:
    fields: dict[str, str] = {}
    credentials.apply(fields)
    return fields


def _account_of(credentials: Any) -> str | None:
    """Return the address of the service account that can sign, `None`: there is none, or it is not known yet."""
    account = getattr(
        credentials, "signer_email" if isinstance(credentials, Signing) else "service_account_email", None
    )
    return account if isinstance(account, str) and "@" in account else None


def _explain(error: Exception) -> Exception:
    """Return an error of a renewal as one of imgkeep."""
    if isinstance(error, Unanswered):
        return BucketError(f"the server for tokens, {error.host}, cannot be reached", cause=error.cause)
    if isinstance(error, exceptions.DefaultCredentialsError):
        return BucketError(NO_CREDENTIALS, remedy=NO_CREDENTIALS_REMEDY)
    details = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], dict) else {}
    code = str(details.get("error", ""))
    if not _CODE.fullmatch(code):
        return BucketError(
            "the server for tokens refuses, or is another server", remedy=_TOKEN_REMEDIES["invalid_grant"]
        )
    return BucketError(f"the server for tokens answers {code}", code, remedy=_TOKEN_REMEDIES.get(code))


def _explain_signing(error: Exception) -> Exception:
    """Return an error of a signature as one of imgkeep; the bucket works all the same."""
    if isinstance(error, Unanswered):
        return BucketError(f"the service that signs, {error.host}, cannot be reached", general=False, cause=error.cause)
    return BucketError(
        "the service does not sign links for this account",
        general=False,
        remedy="grant it the role Service Account Token Creator (roles/iam.serviceAccountTokenCreator) on itself",
    )
