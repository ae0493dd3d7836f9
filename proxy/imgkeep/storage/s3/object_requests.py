"""
GET, HEAD and PUT of objects by requests of our own: a fifth of what the AWS library's cost (docs/performance.md).

Answers mean the same as those of the library, which takes over where an answer names another region of the bucket.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.client import ObjectResponse
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.http_requests import HttpRequest, HttpRequests
from imgkeep.storage.s3.errors import NOT_S3, make_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ssl import SSLContext

    from imgkeep.storage.bucket.request_limits import RequestLimits
    from imgkeep.storage.s3.request_signing import RequestSigner

ANSWER_BYTES_MAX: Final = 65_536
"""Maximum number of bytes of an answer to a PUT that are read; S3's has none."""
USER_AGENT: Final = "imgkeep"
FIELDS: Final = {
    "ContentType": "Content-Type",
    "CacheControl": "Cache-Control",
    "ContentDisposition": "Content-Disposition",
    "IfNoneMatch": "If-None-Match",
    "IfMatch": "If-Match",
    "Range": "Range",
}
"""Header fields by the names that they have as parameters of operations."""
ANSWERED: Final = {
    "ETag": "ETag",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSECustomerAlgorithm": "x-amz-server-side-encryption-customer-algorithm",
}
"""Header fields of answers, by their names in the answers of the library."""
REGION_FIELD: Final = "x-amz-bucket-region"
REGION_STATUSES: Final = frozenset({301, 302, 307, 400})
"""Statuses of requests to a wrong region; 400 is that of a HEAD, whose answer has no code."""
REGION_CODES: Final = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)

_ERROR_START: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}\?>\s*)?<Error[\s>]")
_CODE: Final = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")


class OtherRegionError(BucketError):
    """An answer that may mean that the bucket is in another region."""


class ObjectRequests:
    """The requests to the objects of one bucket."""

    def __init__(self, limits: RequestLimits, signer: RequestSigner, ssl_context: SSLContext | None) -> None:
        self._signer = signer
        self._limits = limits
        self._requests = HttpRequests(limits, make_refusal, ssl_context=ssl_context)

    async def open(self) -> None:
        await self._requests.open()

    async def aclose(self) -> None:
        await self._requests.aclose()

    async def get(self, key: str, conditions: Mapping[str, str]) -> ObjectResponse:
        """
        Open an object.

        Raises:
            OtherRegionError: The library has to find the bucket.
            BucketError: It is not there, or cannot be read.
            Busy: Too many other requests are under way.
        """
        response = await self._requests.open_response("get_object", lambda: self._make("GET", key, conditions))
        etag, size = response.headers.get("ETag", "").strip('"'), response.headers.get("Content-Length", "")
        if not etag or not size.isdecimal():
            response.stream.close()
            raise self._limits.reject_answer(BucketError(NOT_S3))
        return ObjectResponse(int(size), etag, response.stream)

    async def head(self, key: str) -> dict[str, str]:
        """Ask for the header fields of an object; return them as the library does. Raises as `get`."""
        response = await self._requests.open_response("head_object", lambda: self._make("HEAD", key, {}))
        response.stream.close()
        answer = _read_answer(response.headers)
        size = response.headers.get("Content-Length", "")
        return {**answer, "ContentLength": size} if size.isdecimal() else answer

    async def put(self, key: str, data: bytes, digest: bytes, fields: Mapping[str, str]) -> dict[str, str]:
        """Put bytes with this MD5; return the answer as the library does. Raises as `get`."""
        headers = {**fields, "Content-MD5": b64encode(digest).decode()}
        response, _ = await self._requests.call(
            "put_object", lambda: self._make("PUT", key, headers, data), ANSWER_BYTES_MAX
        )
        return _read_answer(response.headers)

    async def _make(self, method: str, key: str, fields: Mapping[str, str], body: bytes | None = None) -> HttpRequest:
        url = self._signer.url_of(key)
        headers = {FIELDS.get(name, name): value for name, value in fields.items()}
        signed = await self._signer.sign(method, url, headers)
        return HttpRequest(method, url, {**signed, "User-Agent": USER_AGENT}, body)


def make_refusal(status: int, headers: Mapping[str, str], body: bytes) -> BucketError:
    """Return the error that a refusal means: that of its code, or of its status where it is no answer of S3."""
    code = read_code(body) or str(status)
    error = make_error(f"the bucket answers {code}", code)
    # Without the region the library asks for it again and again, until it fails by a RecursionError.
    is_named = REGION_FIELD in headers or (code in REGION_CODES and b"<Region>" in body)
    if is_named and (status in REGION_STATUSES or code in REGION_CODES):
        return OtherRegionError(str(error), code, general=error.general, remedy=error.remedy)
    return error


def read_code(body: bytes) -> str:
    """
    Return the code in the body of an error; empty: it is no error of S3, or was cut short.

    A search and no XML parser: nothing in a body costs more than one pass over its bytes.
    """
    if _ERROR_START.match(body) is None or not body.rstrip().endswith(b"</Error>"):
        return ""
    found = _CODE.search(body)
    return "" if found is None else found[1].decode()


def _read_answer(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[field] for name, field in ANSWERED.items() if field in headers}
