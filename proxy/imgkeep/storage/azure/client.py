"""The client of a container of Azure Blob Storage."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.storage.azure.connection import AzureConnection, read_etag
from imgkeep.storage.azure.errors import CHANGED, EXISTS, MISSING, NOT_AZURE
from imgkeep.storage.azure.listing import ENTRIES_MAX, PAGE_BYTES_MAX, read_page
from imgkeep.storage.azure.live_checks import OwnChecks
from imgkeep.storage.azure.settings import SasToken
from imgkeep.storage.azure.uploads import Uploader
from imgkeep.storage.bucket.client import (
    PROBE_BYTES,
    Features,
    ObjectFields,
    ObjectResponse,
    ObjectStatus,
    quarantine_path,
    range_field,
)
from imgkeep.storage.bucket.errors import AlreadyThere, BucketError
from imgkeep.storage.bucket.pages import Pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from imgkeep.core.store_url import AzureContainer
    from imgkeep.storage.azure.listing import Page
    from imgkeep.storage.azure.settings import StorageAccount
    from imgkeep.storage.bucket.client import Check
    from imgkeep.storage.interfaces import Draft

COPY_INTERVAL_S: Final = 0.2
"""Interval between looks at a copy that the service makes in the background; within an account it seldom does."""


class AzureClient:
    """
    The client of one container. Implements `BucketClient`.

    Args:
        observe: Receives operation, outcome and seconds of each call.
    """

    service = "azure"

    def __init__(
        self,
        container: AzureContainer,
        *,
        timeout_s: float = 5,
        observe: Callable[[str, str, float], None] = lambda *_: None,
    ) -> None:
        self.bucket = container
        self.timeout_s = timeout_s
        self.features = Features(conditional_put=True, public_prefix=False)
        self._connection = AzureConnection(container, timeout_s=timeout_s, observe=observe)
        self._uploader = Uploader(self._connection, self._head)

    @property
    def place(self) -> str:
        return self._connection.limits.place

    @property
    def answered_at(self) -> float:
        return self._connection.limits.answered_at

    async def open(self) -> None:
        await self._connection.open(await self._find_account())

    async def check_settings(self) -> None:
        await self._find_account()

    async def _find_account(self) -> StorageAccount:
        account = await self._connection.find_account()
        self.features.presign = not isinstance(account.credentials, SasToken)
        return account

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:
        headers: dict[str, str] = {}
        if part := range_field(start, end):
            headers["x-ms-range"] = part
        if etag:
            headers["If-Match"] = f'"{etag}"'
        try:
            response = await self._connection.open_response(
                "get_object", "GET", self._connection.url(path), headers=headers
            )
        except BucketError as error:
            if error.error_code != MISSING:
                raise
            return None
        try:
            status = self._read_status(response.headers)
        except BaseException:
            response.stream.close()
            raise
        return ObjectResponse(status.size, status.etag, response.stream)

    async def stat(self, path: str) -> ObjectStatus | None:
        headers = await self._head(path)
        return None if headers is None else self._read_status(headers)

    async def _head(self, path: str) -> Mapping[str, str] | None:
        """Return the header fields of a blob; `None`: it is not there."""
        try:
            headers, _ = await self._connection.call("head_object", "HEAD", self._connection.url(path))
        except BucketError as error:
            # Unlike S3, the service tells a missing blob from a missing container here, too: by a header field.
            if error.error_code != MISSING:
                raise
            return None
        return headers

    def _read_status(self, headers: Mapping[str, str]) -> ObjectStatus:
        etag, size = read_etag(headers), headers.get("Content-Length", "")
        if not etag or not size.isdecimal():
            raise self._connection.limits.reject_answer(BucketError(NOT_AZURE))
        return ObjectStatus(int(size), etag)

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:
        condition = only_if_absent and self.features.conditional_put
        try:
            await self._uploader.put_bytes(path, data, fields, only_if_absent=condition)
        except BucketError as error:
            if condition and error.error_code in EXISTS:
                raise AlreadyThere from None
            raise

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:
        await self._uploader.put_draft(path, draft, fields)

    async def delete(self, path: str) -> None:
        await self._delete(path, {}, {MISSING})

    async def _delete(self, path: str, condition: Mapping[str, str], harmless: set[str]) -> None:
        try:
            await self._connection.call(
                "delete_object",
                "DELETE",
                self._connection.url(path),
                # A blob with snapshots, which another program may have made, is not deleted otherwise.
                headers={"x-ms-delete-snapshots": "include", **condition},
            )
        except BucketError as error:
            if error.error_code not in harmless:
                raise

    async def quarantine(self, path: str, etag: str) -> None:
        # Containers have no rename.
        target = quarantine_path(path)
        if await self._copy(path, target, etag):
            # Another process may have put a good one in its place.
            await self._delete(path, {"If-Match": f'"{etag}"'}, {MISSING, *CHANGED})

    async def _copy(self, path: str, target: str, etag: str) -> bool:
        """Copy a blob within the container, and wait; `False`: it is not there, or another version."""
        try:
            answer, _ = await self._connection.call(
                "copy_object",
                "PUT",
                self._connection.url(target),
                headers={
                    "x-ms-copy-source": self._connection.copy_source(path),
                    "x-ms-source-if-match": f'"{etag}"',
                },
            )
        except BucketError as error:
            if error.error_code not in {MISSING, *CHANGED}:
                raise
            # "CannotVerifyCopySource" has more reasons than a missing blob.
            now = await self.stat(path)
            if now is not None and now.etag == etag:
                raise
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout_s):
                while answer.get("x-ms-copy-status") == "pending":
                    await asyncio.sleep(COPY_INTERVAL_S)
                    answer = await self._head(target) or {}
        if answer.get("x-ms-copy-status") != "success":
            raise self._connection.limits.name(BucketError("the container does not copy a blob", general=False))
        return True

    async def has_any(self, prefix: str) -> bool:
        pages, page = Pages(), await self._list(self.bucket.path(prefix), entries_max=1)
        # A page may be empty although another follows ("List Blobs", "NextMarker").
        while not page.entries and pages.go_on(page.marker, is_empty=True):
            page = await self._list(self.bucket.path(prefix), page.marker, entries_max=1)
        return bool(page.entries)

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        prefix, marker = self.bucket.path(f"{folder}/"), ""
        pages, goes_on = Pages(), True
        while goes_on:
            page = await self._list(prefix, marker, entries_max=ENTRIES_MAX)
            for name, size in page.entries:
                yield folder + "/" + name.removeprefix(prefix), size
            marker, goes_on = page.marker, pages.go_on(page.marker, is_empty=not page.entries)

    async def _list(self, prefix: str, marker: str = "", *, entries_max: int) -> Page:
        query = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": str(entries_max)}
        if marker:
            query["marker"] = marker
        _, data = await self._connection.call(
            "list_objects", "GET", self._connection.url(), query=query, size_max=PAGE_BYTES_MAX
        )
        try:
            # In a thread: a full page takes tens of milliseconds.
            return await asyncio.to_thread(read_page, data)
        except BucketError as error:
            raise self._connection.limits.reject_answer(error) from None

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:  # noqa: ARG002 - reading includes HEAD
        query, life_s = await self._connection.links.sign(self.bucket.path(path), ttl_s)
        return f"{self._connection.url(path)}?{query}", life_s

    def public_url(self, path: str) -> str:
        return self._connection.url(path)

    async def probe_features(self, path: str) -> None:
        try:
            await self._uploader.put_bytes(path, PROBE_BYTES, ObjectFields("text/plain"), only_if_absent=True)
        except BucketError as error:
            if error.error_code not in EXISTS:
                raise
            self.features.conditional_put = True
        else:
            self.features.conditional_put = False

    async def abort_uploads(self) -> int:
        # The service removes blocks that are not committed after a week, and cannot list those of a prefix.
        return 0

    def live_checks(self, path: str, image: bytes) -> Sequence[Check]:
        return OwnChecks(self, self._uploader, self._copy, path=path, image=image).steps()
