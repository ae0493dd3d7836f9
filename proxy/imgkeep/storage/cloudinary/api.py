"""
Requests to Cloudinary's Upload API, signed, and to its Admin API, for listings only.

Every answer is checked for what was asked about: a page of a captive portal has no public ID.
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from imgkeep.storage.bucket.body import DraftPart
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.http_requests import HttpRequest, HttpRequests, translate_http_error
from imgkeep.storage.bucket.request_limits import RequestLimits
from imgkeep.storage.cloudinary.answers import NO_JSON, Destroyed, Download, Page, UploadedAsset
from imgkeep.storage.cloudinary.errors import MISSING, NOT_CLOUDINARY, read_refusal
from imgkeep.storage.cloudinary.form import UploadForm
from imgkeep.storage.cloudinary.settings import CloudinaryAccount, read_account
from imgkeep.storage.cloudinary.signing import signed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.clock import Clock
    from imgkeep.storage.cloudinary.assets import Asset, AssetKind

T = TypeVar("T")

ANSWER_BYTES_MAX: Final = 4_194_304
"""Maximum size of an answer in JSON: a page of 500 assets has less than 500 kB."""
PAGE_ASSETS_MAX: Final = 500
"""Maximum number of assets on a page (Admin API, "Get resources"): the hour has few requests."""
YES, NO = "1", "0"
"""Booleans as Cloudinary's own library sends them."""

_MD5: Final = re.compile("[0-9a-f]{32}")
_MEDIA_TYPES: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/svg+xml": "svg",
}
"""Extensions of media types that have one name everywhere."""


class CloudinaryApi:
    """
    The API of one product environment.

    Args:
        place: Name of the folder in messages.
        observe: Receives operation, outcome and seconds of each call.
        environment: The environment variables; by default those of this process.
    """

    def __init__(
        self,
        place: str,
        *,
        timeout_s: float,
        observe: Callable[[str, str, float], None],
        environment: Mapping[str, str] | None,
        clock: Clock,
    ) -> None:
        self.limits = RequestLimits(
            place,
            timeout_s=timeout_s,
            observe=observe,
            translate=partial(translate_http_error, foreign=NOT_CLOUDINARY),
            answers={MISSING},
        )
        self._http = HttpRequests(self.limits, read_refusal)
        self._environment = environment
        self._clock = clock
        self._account: CloudinaryAccount | None = None

    @property
    def account(self) -> CloudinaryAccount:
        """The account. Only after `open`."""
        assert self._account is not None
        return self._account

    def read_account(self) -> CloudinaryAccount:
        """Read the account from the environment. Raises: ConfigError."""
        return read_account(self._environment)

    async def open(self) -> None:
        """Read the account and make the session. Raises: ConfigError."""
        self._account = self.read_account()
        await self._http.open()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def upload(self, asset: Asset, file: bytes | DraftPart, size: int, *, overwrite: bool) -> UploadedAsset:
        """
        Upload a file; without `overwrite` an asset that is there stays, and the answer describes it.

        Raises:
            BucketError: The service does not answer, refuses, or has stored the file under another name.
        """
        parameters = {"public_id": asset.public_id, "type": asset.kind.type}
        parameters |= {"overwrite": YES, "invalidate": YES} if overwrite else {"overwrite": NO}

        async def make() -> HttpRequest:
            form = UploadForm(self._sign(parameters), file, size)
            return HttpRequest("POST", self._url(asset.kind.resource_type, "upload"), form.headers, form)

        body = file if isinstance(file, DraftPart) else None
        _, data = await self._http.call("put_object", make, ANSWER_BYTES_MAX, body)
        return self._read_asset(data, asset)

    async def describe(self, asset: Asset) -> UploadedAsset | None:
        """Return what the service knows of an asset; `None`: it is not there. `explicit` without actions reads only."""
        parameters = {"public_id": asset.public_id, "type": asset.kind.type}
        data = await self._post("head_object", asset.kind.resource_type, "explicit", parameters)
        return None if data is None else self._read_asset(data, asset)

    async def rename(self, asset: Asset, target: Asset) -> UploadedAsset | None:
        """Give an asset another name, and the type of that; `None`: it is not there."""
        parameters = {
            "from_public_id": asset.public_id,
            "to_public_id": target.public_id,
            "type": asset.kind.type,
            "to_type": target.kind.type,
            "overwrite": NO,
            "invalidate": YES,
        }
        data = await self._post("copy_object", asset.kind.resource_type, "rename", parameters)
        return None if data is None else self._read_asset(data, target)

    async def destroy(self, asset: Asset) -> None:
        """Delete an asset, if it is there, and its copies in the CDN."""
        parameters = {"public_id": asset.public_id, "type": asset.kind.type, "invalidate": YES}
        data = await self._post("delete_object", asset.kind.resource_type, "destroy", parameters)
        if data is not None and self._decode(data, Destroyed).result not in {"ok", "not found"}:
            raise self._not_cloudinary()

    async def download(self, asset: Asset) -> Download | None:
        """Open the stored bytes of an asset; `None`: it is not there, or not an image of this format."""
        parameters = {"public_id": asset.public_id, "type": asset.kind.type}

        async def make() -> HttpRequest:
            url = self._url(asset.kind.resource_type, "download")
            return HttpRequest("GET", f"{url}?{urlencode(self._sign(parameters))}", {})

        try:
            response = await self._http.open_response("get_object", make)
        except BucketError as error:
            if error.error_code != MISSING:
                raise
            return None
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type == "text/html":
            response.stream.close()
            raise self._not_cloudinary()
        if asset.format and _MEDIA_TYPES.get(media_type, asset.format) != asset.format:
            response.stream.close()
            return None
        length = response.headers.get("Content-Length", "")
        etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        return Download(
            int(length) if length.isascii() and length.isdigit() else None,
            etag if _MD5.fullmatch(etag) else "",
            response.stream,
        )

    async def list_page(self, kind: AssetKind, prefix: str, *, cursor: str = "", size: int = PAGE_ASSETS_MAX) -> Page:
        """Return a page of the assets of a kind whose public IDs have a prefix, sorted by public ID."""
        query = {"prefix": prefix, "max_results": str(size)} | ({"next_cursor": cursor} if cursor else {})
        account = self.account
        credentials = b64encode(f"{account.key}:{account.secret}".encode()).decode()

        async def make() -> HttpRequest:
            url = self._url("resources", kind.resource_type, kind.type)
            return HttpRequest("GET", f"{url}?{urlencode(query)}", {"Authorization": f"Basic {credentials}"})

        _, data = await self._http.call("list_objects", make, ANSWER_BYTES_MAX)
        return self._decode(data, Page)

    async def _post(
        self, operation: str, resource_type: str, action: str, parameters: Mapping[str, str]
    ) -> bytes | None:
        """Send a signed request and return the answer; `None`: the asset is not there."""

        async def make() -> HttpRequest:
            body = urlencode(self._sign(parameters)).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
            return HttpRequest("POST", self._url(resource_type, action), headers, body)

        try:
            return (await self._http.call(operation, make, ANSWER_BYTES_MAX))[1]
        except BucketError as error:
            if error.error_code != MISSING:
                raise
            return None

    def _read_asset(self, data: bytes, asset: Asset) -> UploadedAsset:
        """Read an answer about an asset."""
        found = self._decode(data, UploadedAsset)
        if (found.public_id, found.resource_type, found.type) != (
            asset.public_id,
            asset.kind.resource_type,
            asset.kind.type,
        ):
            raise self.limits.name(BucketError("Cloudinary answers about another asset than it was asked about"))
        return found

    def _decode(self, data: bytes, type_: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=type_)
        except NO_JSON:
            raise self._not_cloudinary() from None

    def _not_cloudinary(self) -> Exception:
        return self.limits.reject_answer(BucketError(NOT_CLOUDINARY))

    def _sign(self, parameters: Mapping[str, str]) -> dict[str, str]:
        return signed(
            parameters,
            key=self.account.key,
            secret=self.account.secret,
            timestamp=int(self._clock().timestamp()),
        )

    def _url(self, *parts: str) -> str:
        return "/".join((self.account.api_url, "v1_1", self.account.cloud, *parts))
