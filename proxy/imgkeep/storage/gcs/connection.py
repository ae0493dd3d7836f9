"""
The connection to one bucket: requests of the JSON API, with a token each.

The JSON API and not the XML API, because emulators have it whole. It says `notFound` of objects and buckets alike;
where its message leaves that open too, a list request decides.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.http_requests import HttpRequest, HttpRequests, translate_http_error
from imgkeep.storage.bucket.request_limits import RequestLimits
from imgkeep.storage.gcs.credential_requests import Transport
from imgkeep.storage.gcs.credentials import GcsCredentials
from imgkeep.storage.gcs.errors import (
    EXISTS,
    MISSING,
    NO_BUCKET,
    NOT_GCS,
    UNAUTHORIZED,
    UNCLEAR,
    UNREADABLE,
    make_error,
    read_error,
)
from imgkeep.storage.gcs.settings import SERVICE, find_credentials, find_service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.core.store_url import GcsBucket
    from imgkeep.storage.bucket.http_requests import HttpResponse

T = TypeVar("T")

ANSWER_BYTES_MAX: Final = 2_097_152
"""
Maximum size of an answer that is no media: a page of a thousand names of a thousand bytes has half of it. One of 8 MB
that is made for it holds the event loop up for half a second.
"""


EMPTY_PAGES_MAX: Final = 100
"""Maximum number of pages without objects before the first one; the service sends one now and then."""

Number = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,19}\Z")]
"""A number as the service writes it."""


class ObjectResource(msgspec.Struct):
    """What the service says of an object (JSON API, "Objects")."""

    name: str
    size: Number
    generation: Number
    md5_hash: str = msgspec.field(default="", name="md5Hash")


class Listed(msgspec.Struct):
    """An object in a list."""

    name: str
    size: Number


class Listing(msgspec.Struct):
    """A page of a list; one without items may have a next page."""

    kind: str
    items: list[Listed] = msgspec.field(default_factory=list)
    next_page_token: str = msgspec.field(default="", name="nextPageToken")


class GcsConnection:
    """
    The connection to one bucket.

    Args:
        observe: Receives operation, outcome and seconds of each call.
        make_transport: As in `GcsCredentials`.
    """

    def __init__(
        self,
        bucket: GcsBucket,
        *,
        timeout_s: float,
        observe: Callable[[str, str, float], None],
        make_transport: Callable[[float], Transport] = Transport,
    ) -> None:
        self.bucket = bucket
        self.base = SERVICE
        self.credentials = GcsCredentials(timeout_s=timeout_s, make_transport=make_transport)
        self.limits = RequestLimits(
            f"bucket {bucket.name}",
            timeout_s=timeout_s,
            observe=observe,
            translate=partial(translate_http_error, foreign=NOT_GCS),
            answers={MISSING, EXISTS},
        )
        self._requests = HttpRequests(self.limits, read_error)

    async def open(self) -> None:
        """Make the session; read the credentials. Raises: ConfigError."""
        self.base = find_service()
        await self.credentials.open(self.base)
        self.limits.place = f"bucket {self.bucket.name} at {urlsplit(self.base).netloc}"
        await self._requests.open()

    @staticmethod
    def check_settings() -> None:
        """Check the environment and the file with credentials, without any request. Blocks. Raises: ConfigError."""
        find_service()
        find_credentials()

    async def aclose(self) -> None:
        await self.credentials.aclose()
        await self._requests.aclose()

    def object_url(self, path: str, query: Mapping[str, str], *, root: str = "/storage/v1", tail: str = "") -> str:
        """Return the URL of an object in the API, or of a method of it: the `tail`."""
        return self._url(root, query, f"/{quote(self.bucket.path(path), safe='')}{tail}")

    def upload_url(self, query: Mapping[str, str]) -> str:
        return self._url("/upload/storage/v1", query)

    def _url(self, root: str, query: Mapping[str, str], rest: str = "") -> str:
        return f"{self.base}{root}/b/{self.bucket.name}/o{rest}?{urlencode(query, quote_via=quote)}"

    async def open_response(self, operation: str, request: HttpRequest) -> HttpResponse:
        """
        Send a request with a token, and return the response once its head is there. A refused token is renewed once.

        Raises:
            BucketError: It failed, or made no progress for `timeout_s`.
            Busy: Too many other requests are under way.
        """
        token: dict[str, str] = {}

        async def make() -> HttpRequest:
            nonlocal token
            token = await self.credentials.headers()
            return replace(request, headers={**request.headers, **token})

        try:
            return await self._requests.open_response(operation, make, request.body)
        except BucketError as error:
            if error.error_code != UNAUTHORIZED or not self.credentials.refuse(token):
                raise
        return await self._requests.open_response(operation, make, request.body)

    async def call(self, kind: type[T], operation: str, request: HttpRequest) -> T:
        """Send a request and return its answer, which has to be of a `kind`. Raises as `open_response`."""
        response = await self.open_response(operation, request)
        data = await response.stream.read_all(ANSWER_BYTES_MAX)
        try:
            return msgspec.json.decode(data, type=kind)
        except UNREADABLE:
            raise self.limits.reject_answer(BucketError(NOT_GCS)) from None

    async def list_page(self, prefix: str, *, token: str = "", count: int = 1000) -> Listing:
        """Return a page of the objects whose names begin so. Raises as `open_response`."""
        query = {"prefix": prefix, "maxResults": str(count), "fields": "kind,nextPageToken,items(name,size)"}
        if token:
            query["pageToken"] = token
        try:
            page = await self.call(Listing, "list_objects", HttpRequest("GET", self._url("/storage/v1", query), {}))
        except BucketError as error:
            raise self.of_bucket(error) from None
        if page.kind != "storage#objects" or (token and page.next_page_token == token):
            raise self.limits.reject_answer(BucketError(NOT_GCS))
        return page

    async def find_first(self, prefix: str) -> str | None:
        """Return the first name that begins so; `None`: there is none. Raises as `open_response`."""
        token = ""
        for _ in range(EMPTY_PAGES_MAX):
            page = await self.list_page(prefix, token=token, count=1)
            token = page.next_page_token
            if page.items or not token:
                return page.items[0].name if page.items else None
        raise self.limits.reject_answer(BucketError(NOT_GCS))

    def of_bucket(self, error: BucketError) -> Exception:
        """Return the error of a request to which only the bucket can be missing."""
        return self.limits.name(make_error(NO_BUCKET)) if error.error_code == "notFound" else error

    async def is_miss(self, error: BucketError, path: str) -> bool:
        """
        Tell whether an error means that an object is missing.

        Raises:
            BucketError: The bucket is missing, or cannot tell.
        """
        if error.error_code not in UNCLEAR:
            return error.error_code == MISSING
        name = self.bucket.path(path)
        return await self.find_first(name) != name
