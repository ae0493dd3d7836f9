"""
Signed requests to the objects of one bucket: what the AWS library would send, without its cost.

The signature is that of AWS Signature Version 4 for S3 (Amazon S3 API Reference, "Authenticating Requests"), and the
tests compare it with the library's. The key of a day's signatures is derived once.

The library decides once where the bucket is and how its requests are signed (endpoint, addressing style, region); this
module asks it for that with a request that is never sent. Where the library signs in another way than by signature
version 4, as for access points of several regions, there is no signer, and the library sends everything itself.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from botocore.compat import get_current_datetime
from botocore.exceptions import NoCredentialsError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE: Final = "probe"
"""Name of the object in the request that is never sent."""
EVENT: Final = "before-sign.s3.GetObject"
SIGNATURE_VERSION: Final = "s3v4"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"


class _NeverSentError(Exception):
    """Ends a request of the library as soon as it is made."""

    def __init__(self, request: Any, signature_version: object, region: str | None) -> None:
        super().__init__()
        self.request = request
        self.signature_version = signature_version
        self.region = region


class RequestSigner:
    """
    The signer of requests to objects of one bucket.

    Args:
        base_url: What stands before the name of an object.
        region: The region that signatures name.
        service: The service that signatures name.
        credentials: Those of the library, which renews them; `None`: there are none.
    """

    def __init__(self, base_url: str, region: str, service: str, credentials: Any) -> None:
        self.base_url = base_url
        self._region = region
        self._service = service
        self._credentials = credentials
        parts = urlsplit(base_url)
        self._host = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")
        self._path_starts = len(f"{parts.scheme}://{parts.netloc}")
        self._key: tuple[str, str, bytes] = ("", "", b"")
        """The last key: its day, its secret, and itself."""

    def url_of(self, key: str) -> str:
        return f"{self.base_url}/{quote(key, safe='/~')}"

    async def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """
        Return the header fields of a request with its signature. The body is not signed: its MD5 is a header field.

        Raises:
            BotoCoreError: There are no credentials, or they cannot be renewed.
        """
        if self._credentials is None:
            raise NoCredentialsError
        credentials = await self._credentials.get_frozen_credentials()
        moment = get_current_datetime().strftime("%Y%m%dT%H%M%SZ")
        sent = {**headers, "X-Amz-Date": moment, "X-Amz-Content-SHA256": UNSIGNED}
        if credentials.token:
            sent["X-Amz-Security-Token"] = credentials.token
        lines = sorted((name.lower(), " ".join(value.split())) for name, value in [*sent.items(), ("Host", self._host)])
        names = ";".join(name for name, _ in lines)
        fields = "".join(f"{name}:{value}\n" for name, value in lines)
        canonical = f"{method}\n{url[self._path_starts :]}\n\n{fields}\n{names}\n{UNSIGNED}"
        scope = f"{moment[:8]}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = _sign(self._key_of(moment[:8], credentials.secret_key), text).hex()
        signer = f"{credentials.access_key}/{scope}"
        sent["Authorization"] = f"AWS4-HMAC-SHA256 Credential={signer}, SignedHeaders={names}, Signature={signature}"
        return sent

    def _key_of(self, day: str, secret: str) -> bytes:
        if self._key[:2] != (day, secret):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = _sign(key, part)
            self._key = (day, secret, key)
        return self._key[2]


def _sign(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


async def make_signer(client: Any, bucket: str, credentials: Any) -> RequestSigner | None:
    """
    Return the signer for the bucket of a client; `None`: its requests are signed in another way.

    Args:
        client: The client of aiobotocore.
        bucket: The bucket's name.
        credentials: Those of the client's session.
    """
    try:
        seen = await _see_request(client, bucket)
    except Exception:  # noqa: BLE001 - whatever the library has against the bucket, a request will say
        return None
    base_url, slash, name = seen.request.url.rpartition("/")
    signing = seen.request.context.get("signing", {})
    region = signing.get("region") or seen.region
    is_plain = seen.signature_version == SIGNATURE_VERSION and slash + name == f"/{EXAMPLE}"
    # S3 Express signs with credentials of a session of its own.
    if not is_plain or not isinstance(region, str) or signing.get("identity_cache") is not None:
        return None
    return RequestSigner(base_url, region, signing.get("signing_name") or "s3", credentials)


async def _see_request(client: Any, bucket: str) -> _NeverSentError:
    def see(request: Any, signature_version: object, region_name: str | None, **_: object) -> None:
        raise _NeverSentError(request, signature_version, region_name)

    client.meta.events.register_first(EVENT, see, unique_id="imgkeep-see")
    try:
        await client.get_object(Bucket=bucket, Key=EXAMPLE)
    except _NeverSentError as seen:
        return seen
    finally:
        client.meta.events.unregister(EVENT, unique_id="imgkeep-see")
    raise AssertionError("the library signs every request")
