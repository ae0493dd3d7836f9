"""
Signed URLs of Google Cloud Storage (Cloud Storage documentation, "V4 signing process with your own program").

Values in, values out; another module signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from datetime import datetime

TTL_S_MAX: Final = 604_800
"""Maximum life of a link that a key signs: seven days, which the service sets."""
ALGORITHM: Final = "GOOG4-RSA-SHA256"


@dataclass(frozen=True, slots=True)
class UnsignedUrl:
    """
    A URL that lacks its signature.

    Attributes:
        text: The bytes to sign.
    """

    url: str
    text: bytes

    def add(self, signature: bytes) -> str:
        """Return the link."""
        return f"{self.url}&X-Goog-Signature={signature.hex()}"


def prepare(url: str, *, account: str, now: datetime, ttl_s: int, head: bool) -> UnsignedUrl:
    """
    Prepare the link to an object.

    Args:
        url: The URL of the object, encoded.
        account: The e-mail address of the service account that signs.
        now: The time from which the link is valid, in UTC.
        ttl_s: Its life in seconds.
        head: Whether it is for HEAD; else it is for GET.
    """
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/auto/storage/goog4_request"
    query = "&".join(
        (
            f"X-Goog-Algorithm={ALGORITHM}",
            f"X-Goog-Credential={quote(f'{account}/{scope}', safe='')}",
            f"X-Goog-Date={moment}",
            f"X-Goog-Expires={ttl_s}",
            "X-Goog-SignedHeaders=host",
        )
    )
    parts = urlsplit(url)
    request = "\n".join(
        ("HEAD" if head else "GET", parts.path, query, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD")
    )
    digest = sha256(request.encode()).hexdigest()
    return UnsignedUrl(f"{url}?{query}", f"{ALGORITHM}\n{moment}\n{scope}\n{digest}".encode())
