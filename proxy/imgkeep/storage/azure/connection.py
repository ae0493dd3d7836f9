"""
The connection to one container: requests to the Blob service's REST API, authorized, and judged by what they answer.

A success is one of the service only if it carries the service's request id: a portal answers 200, too.
"""

from __future__ import annotations

import asyncio
import os
from email.utils import format_datetime
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, assert_never
from urllib.parse import quote, urlsplit

from imgkeep.clock import read_clock
from imgkeep.config import ConfigError
from imgkeep.storage.azure.access_tokens import AccessTokens
from imgkeep.storage.azure.errors import ANSWERS, AUTHENTICATION, NOT_AZURE, make_error
from imgkeep.storage.azure.settings import AccountKey, MachineIdentity, SasToken, read_account
from imgkeep.storage.azure.shared_access import KEY_BYTES_MAX, LinkSigner
from imgkeep.storage.azure.shared_key import sign
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.http_requests import HttpRequest, HttpRequests, translate_http_error
from imgkeep.storage.bucket.request_limits import RequestLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.clock import Clock
    from imgkeep.core.store_url import AzureContainer
    from imgkeep.storage.azure.settings import StorageAccount
    from imgkeep.storage.bucket.body import DraftPart
    from imgkeep.storage.bucket.http_requests import HttpResponse

API_VERSION: Final = "2021-12-02"
"""Version of the API: recent enough for names that XML cannot hold, and known to Azurite and to older clouds."""
REQUEST_ID: Final = "x-ms-request-id"
ANSWER_BYTES_MAX: Final = 65_536
"""Maximum size of an answer that is no blob and no list."""

_LIBRARIES: Final = ("azure.identity", "azure.storage.blob")


class AzureConnection:
    """
    The connection to one container.

    Args:
        observe: Receives operation, outcome and seconds of each call.
        clock: Returns the time.
    """

    def __init__(
        self,
        container: AzureContainer,
        *,
        timeout_s: float,
        observe: Callable[[str, str, float], None],
        clock: Clock = read_clock,
    ) -> None:
        self.container = container
        self.limits = RequestLimits(
            f"container {container.name}",
            timeout_s=timeout_s,
            observe=observe,
            translate=partial(translate_http_error, foreign=NOT_AZURE),
            answers=ANSWERS,
        )
        self.account: StorageAccount
        self.links: LinkSigner
        self._clock = clock
        self._requests = HttpRequests(self.limits, self._refuse)
        self._tokens = AccessTokens(timeout_s=timeout_s, clock=clock)

    async def open(self, account: StorageAccount) -> None:
        """Open a session; no request is sent."""
        self.account = account
        self.links = LinkSigner(
            account, self.container.name, clock=self._clock, request_key=self._request_delegation_key
        )
        self.limits.place = f"container {self.container.name} at {urlsplit(account.endpoint).netloc}"
        await self._requests.open()

    async def find_account(self) -> StorageAccount:
        """Return the account that the settings name, without any request. Raises: ConfigError."""
        account = read_account(self.container, os.environ)  # noqa: TID251 - as all tools of Azure read it
        if not isinstance(account.credentials, SasToken) and not await asyncio.to_thread(_has_libraries):
            raise ConfigError("store.url: az:// needs the libraries of Azure: pip install 'imgkeep[azure]'")
        return account

    async def aclose(self) -> None:
        await self._requests.aclose()
        await self._tokens.aclose()

    def url(self, path: str | None = None) -> str:
        """Return the URL of a blob, or of the container, without a query."""
        base = f"{self.account.endpoint}/{quote(self.container.name)}"
        return base if path is None else f"{base}/{quote(self.container.path(path), safe='/~')}"

    def copy_source(self, path: str) -> str:
        """Return the URL of a blob as the source of a copy: a SAS has to authorize it once more."""
        credentials = self.account.credentials
        return f"{self.url(path)}?{credentials.query}" if isinstance(credentials, SasToken) else self.url(path)

    async def call(  # noqa: PLR0913 - the parts of a request
        self,
        operation: str,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | DraftPart | None = None,
        size_max: int = ANSWER_BYTES_MAX,
    ) -> tuple[Mapping[str, str], bytes]:
        """Send a request; return header fields and body of the answer. As `open_response`."""
        response = await self.open_response(operation, method, url, query=query, headers=headers, body=body)
        return response.headers, await response.stream.read_all(size_max)

    async def open_response(  # noqa: PLR0913 - the parts of a request
        self,
        operation: str,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | DraftPart | None = None,
    ) -> HttpResponse:
        """
        Send a request.

        Args:
            operation: Its name in the metrics.
            method: As in HTTP.
            url: As `url` returns it.
            query: The parameters, not encoded.
            headers: Besides those of every request. With a part of a draft its `Content-Length`.
            body: The body.

        Raises:
            BucketError: The service refuses it, or does not answer.
            Busy: Too many other requests are under way.
        """

        async def make() -> HttpRequest:
            return await self._authorize(method, url, query or {}, headers or {}, body)

        response = await self._requests.open_response(operation, make, body)
        if not response.headers.get(REQUEST_ID):
            response.stream.close()
            raise self.limits.reject_answer(BucketError(NOT_AZURE))
        return response

    async def _authorize(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | DraftPart | None,
    ) -> HttpRequest:
        fields = {"x-ms-date": format_datetime(self._clock(), usegmt=True), "x-ms-version": API_VERSION}
        if method in {"PUT", "POST"}:
            fields["Content-Length"] = str(len(body) if isinstance(body, bytes) else 0)
        fields |= headers
        signature = ""
        match self.account.credentials:
            case AccountKey(key):
                fields["Authorization"] = sign(
                    account=self.account.name, key=key, method=method, url=url, query=query, headers=fields
                )
            case SasToken(token):
                signature = token
            case MachineIdentity():
                fields["Authorization"] = f"Bearer {await self._tokens.get()}"
            case unknown:
                assert_never(unknown)
        fields["User-Agent"] = "imgkeep"
        parameters = [f"{name}={quote(value, safe='')}" for name, value in query.items()]
        parameters += [signature] if signature else []
        return HttpRequest(method, f"{url}?{'&'.join(parameters)}" if parameters else url, fields, body)

    def _refuse(self, status: int, headers: Mapping[str, str], _data: bytes) -> BucketError:
        error = make_error(status, headers, self.account.credentials, self._clock())
        if error.error_code in AUTHENTICATION:
            self._tokens.drop()
        return error

    async def _request_delegation_key(self, document: bytes) -> bytes:
        query = {"restype": "service", "comp": "userdelegationkey"}

        async def make() -> HttpRequest:
            return await self._authorize("POST", f"{self.account.endpoint}/", query, {}, document)

        # Azurite gives no request id here; the fields of the key prove more.
        _, answer = await self._requests.call("get_user_delegation_key", make, KEY_BYTES_MAX)
        return answer


def _has_libraries() -> bool:
    """Tell whether the libraries are installed; their import takes a second, and waits until it is needed."""
    try:
        return all(find_spec(name) is not None for name in _LIBRARIES)
    except ModuleNotFoundError:  # of `azure`, or of `azure.storage`
        return False


def read_etag(headers: Mapping[str, str]) -> str:
    """Return the ETag of an answer without its quotes; empty: there is none."""
    return headers.get("ETag", "").strip('"')
