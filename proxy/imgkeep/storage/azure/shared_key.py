"""
The authorization of a request by the key of its account ("Authorize with Shared Key", version 2015-02-21 and later).

azure-storage-blob signs by the same algorithm, inside of its client.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIGNED_FIELDS: Final = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def sign(  # noqa: PLR0913 - the parts of a request
    *, account: str, key: bytes, method: str, url: str, query: Mapping[str, str], headers: Mapping[str, str]
) -> str:
    """
    Return the value of the field `Authorization`.

    Args:
        account: Name of the account.
        key: Its key.
        method: As in the request.
        url: As in the request, without its query.
        query: The parameters, not encoded.
        headers: All fields that the request will have.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    if fields.get("content-length") == "0":
        fields["content-length"] = ""
    own = sorted((name, value) for name, value in fields.items() if name.startswith("x-ms-"))
    lines = [
        method,
        *(fields.get(name, "") for name in _SIGNED_FIELDS),
        *(f"{name}:{value}" for name, value in own),
        f"/{account}{urlsplit(url).path}",
        *(f"{name.lower()}:{value}" for name, value in sorted(query.items())),
    ]
    signature = hmac.digest(key, "\n".join(lines).encode(), "sha256")
    return f"SharedKey {account}:{b64encode(signature).decode()}"
