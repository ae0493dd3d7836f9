"""
Signed requests to the objects of one bucket: what the AWS library would send, with its own signer and without its cost.

The library decides once where the bucket is and how its requests are signed (endpoint, addressing style, region); this
module asks it for that with a request that is never sent. Where the library signs in another way than by signature
version 4, as for access points of several regions, there is no signer, and the library sends everything itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import NoCredentialsError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE: Final = "probe"
"""Name of the object in the request that is never sent."""
EVENT: Final = "before-sign.s3.GetObject"
SIGNATURE_VERSION: Final = "s3v4"


class _NeverSentError(Exception):
    """Ends a request of the library as soon as it is made."""

    def __init__(self, request: Any, signature_version: object, region: str | None) -> None:
        super().__init__()
        self.request = request
        self.signature_version = signature_version
        self.region = region


@dataclass(frozen=True, slots=True)
class RequestSigner:
    """
    The signer of requests to objects of one bucket.

    Attributes:
        base_url: What stands before the name of an object.
        region: The region that signatures name.
        service: The service that signatures name.
        config: The configuration of the library's client.
        credentials: Those of the library, which renews them; `None`: there are none.
    """

    base_url: str
    region: str
    service: str
    config: Any
    credentials: Any

    def url_of(self, key: str) -> str:
        return f"{self.base_url}/{quote(key, safe='/~')}"

    async def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """
        Return the header fields of a request with its signature. The body is not signed: its MD5 is a header field.

        Raises:
            BotoCoreError: There are no credentials, or they cannot be renewed.
        """
        if self.credentials is None:
            raise NoCredentialsError
        frozen = await self.credentials.get_frozen_credentials()
        request = AWSRequest(method=method, url=url, headers=headers)
        request.context["client_config"] = self.config
        S3SigV4Auth(frozen, self.service, self.region).add_auth(request)
        return dict(request.headers.items())


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
    if not is_plain or not isinstance(region, str):
        return None
    return RequestSigner(base_url, region, signing.get("signing_name") or "s3", client.meta.config, credentials)


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
