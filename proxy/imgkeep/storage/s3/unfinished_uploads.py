"""
Uploads in parts that a process began and a kill interrupted: the operator pays for their parts until they are aborted.

Nothing tells whether another node still sends the parts of an upload, so only its age counts. Both its beginning and
the time of the answer are the server's, so no clock of a node matters.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.layout import OBJECTS, read_object_name
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.s3.live_checks import PARTS_SUFFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.storage.s3.connection import S3Connection

ABANDONED_AFTER: Final = timedelta(days=1)
"""
Age at which no node works on an upload any more: one of 50 MiB, the limit by default, takes a day at 600 bytes per
second, and an upload that makes no progress for `store.timeout_s` ends. A day of parts costs little, and an upload that
is aborted while a node sends it costs that node another one.
"""
PAGES_MAX: Final = 100
"""Maximum number of pages that one run reads, a thousand uploads each; the next run reads on where these are gone."""
NO_SUCH_UPLOAD: Final = "NoSuchUpload"


async def abort_unfinished_uploads(connection: S3Connection) -> int:
    """
    Abort the abandoned uploads of objects below the prefix; return their number.

    Raises:
        BucketError: They cannot be listed or aborted.
        Busy: Too many other requests are under way.
    """
    abandoned = [upload async for upload in _list_abandoned(connection)]
    aborted = 0
    for key, upload in abandoned:
        try:
            await connection.call("abort_multipart_upload", Key=key, UploadId=upload)
        except BucketError as error:
            if error.error_code != NO_SUCH_UPLOAD:
                raise
        else:
            aborted += 1
    return aborted


async def _list_abandoned(connection: S3Connection) -> AsyncIterator[tuple[str, str]]:
    """Yield name and id of each upload of an object of ours that began too long ago."""
    following: dict[str, str] = {}
    for _ in range(PAGES_MAX):
        prefix = connection.bucket.path(f"{OBJECTS}/")
        answer = await connection.call("list_multipart_uploads", Prefix=prefix, **following)
        now = _read_date(answer)
        for upload in answer.get("Uploads", []):
            key, begun = upload.get("Key", ""), upload.get("Initiated")
            is_old = now is not None and isinstance(begun, datetime) and now - begun >= ABANDONED_AFTER
            if is_old and key.startswith(prefix) and _is_ours(key) and upload.get("UploadId"):
                yield key, upload["UploadId"]
        last, following = following, {}
        for name, next_name in (("KeyMarker", "NextKeyMarker"), ("UploadIdMarker", "NextUploadIdMarker")):
            if answer.get(next_name):
                following[name] = answer[next_name]
        if not answer.get("IsTruncated") or following in ({}, last):
            return


def _is_ours(key: str) -> bool:
    """Tell whether a name is that of an object, or of the object of a live check beside it."""
    return read_object_name(key.rpartition("/")[2].removesuffix(PARTS_SUFFIX)) is not None


def _read_date(answer: dict[str, Any]) -> datetime | None:
    """Return the time of an answer (RFC 9110, 6.6.1); `None`: it does not tell."""
    try:
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, TypeError, ValueError):
        return None
    return None if date.tzinfo is None else date
