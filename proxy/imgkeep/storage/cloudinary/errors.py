"""
Errors of Cloudinary as errors of imgkeep, and their remedies.

Cloudinary has no error codes, only statuses and sentences. The beginnings of sentences give the codes here; the
sentences are not passed on, because some quote a signature.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.cloudinary.answers import NO_JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING: Final = "NotFound"
NOT_CLOUDINARY: Final = "the server at the address of Cloudinary's API does not speak it"

_SENTENCES: Final = (
    ("resource not found", MISSING),
    ("stale request", "StaleRequest"),
    ("invalid signature", "InvalidSignature"),
    ("unknown api key", "UnknownApiKey"),
    ("invalid api_key", "UnknownApiKey"),
    ("cloud_name mismatch", "InvalidCloudName"),
    ("invalid cloud_name", "InvalidCloudName"),
    ("cloud_name is disabled", "DisabledCloud"),
    ("disabled account", "DisabledCloud"),
    ("file size too large", "FileTooLarge"),
    ("maximum image size", "FileTooLarge"),
    ("image dimensions", "FileTooLarge"),
    ("invalid image file", "FormatRefused"),
    ("unsupported file", "FormatRefused"),
    ("image file format", "FormatRefused"),
    ("invalid svg", "FormatRefused"),
)
"""Beginnings of sentences, in lower case, and what they mean."""

_STATUSES: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "NotAllowed",
    409: "AlreadyExists",
    413: "FileTooLarge",
    420: "RateLimited",
    429: "RateLimited",
}
"""Statuses, as Cloudinary's library reads them."""

_MESSAGES: Final = {
    "FileTooLarge": "Cloudinary refuses the file: it is larger than the account's plan allows",
    "FormatRefused": "Cloudinary refuses the file: it does not take it for an image that it can handle",
}

REMEDIES: Final = {
    "StaleRequest": "set the clock of this machine: Cloudinary refuses requests that are an hour old",
    "InvalidSignature": "correct the API secret in CLOUDINARY_URL",
    "UnknownApiKey": "correct the API key in CLOUDINARY_URL",
    "InvalidCloudName": "correct the cloud name in CLOUDINARY_URL",
    "DisabledCloud": "see the account in Cloudinary's console: it is disabled, or its credits are used up",
    "Unauthorized": "correct the API key and secret in CLOUDINARY_URL, or activate the key in Cloudinary's console",
    "NotAllowed": "give the API key the right, under Settings > API Keys of Cloudinary's console",
    "RateLimited": "wait for the next hour, or take a larger plan: Cloudinary limits requests to its Admin API",
    "FileTooLarge": "take a larger plan, or lower fetch.body_bytes_max to what the plan allows",
    "FormatRefused": "none: use another store for images of this format",
    "Changed": "remove incoming transformations from the default upload preset, in Cloudinary's console",
    "404": "correct the cloud name in CLOUDINARY_URL, and upload_prefix if it is there",
}
OBJECT_CODES: Final = frozenset(
    {
        MISSING,
        "404",
        "FileTooLarge",
        "FormatRefused",
        "Changed",
        "BadRequest",
        "NotAllowed",
        "AlreadyExists",
        "RateLimited",
    }
)
"""
Codes that may concern the requested asset alone, or listings alone; a probe of the circuit breaker finds out.
"""


class _Message(msgspec.Struct):
    message: str = ""


class _Failure(msgspec.Struct):
    error: _Message = msgspec.field(default_factory=_Message)


def make_error(code: str, message: str = "") -> BucketError:
    """Return the error that a code means."""
    message = message or _MESSAGES.get(code, f"Cloudinary answers {code}")
    return BucketError(message, code, general=code not in OBJECT_CODES, remedy=REMEDIES.get(code))


def read_refusal(status: int, _headers: Mapping[str, str], data: bytes) -> BucketError:
    """Return the error that a response with a status of 300 or more means."""
    try:
        sentence = msgspec.json.decode(data, type=_Failure).error.message.lower()
    except NO_JSON:
        # The Admin API answers wrong credentials with a page; any server on the way may find a file too large.
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}:
            return make_error(_STATUSES[status])
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return make_error(str(status))
        code = str(status)
        return BucketError(NOT_CLOUDINARY, code, general=code not in OBJECT_CODES, remedy=REMEDIES["404"])
    for beginning, code in _SENTENCES:
        if sentence.startswith(beginning):
            return make_error(code)
    return make_error(_STATUSES.get(status, str(status)))
