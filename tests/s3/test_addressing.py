"""The URLs of links to a bucket, without any request."""

from __future__ import annotations

import pytest

from imgkeep.core.store_url import S3Bucket
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.s3 import S3Client

NAME = "a" * 64 + ".png"
PATH = f"v1/objects/aa/{NAME}"


@pytest.mark.parametrize(
    ("bucket", "url"),
    [
        pytest.param(
            S3Bucket("images", region="eu-central-1"),
            f"https://images.s3.eu-central-1.amazonaws.com/{PATH}",
            id="Amazon, by region and not the global host",
        ),
        pytest.param(
            S3Bucket("my.images", "pre", region="eu-central-1"),
            f"https://s3.eu-central-1.amazonaws.com/my.images/pre/{PATH}",
            id="a dot, for which no certificate is good",
        ),
        pytest.param(
            S3Bucket("images", "a b", endpoint="http://s3.example:9000"),
            f"http://s3.example:9000/images/a%20b/{PATH}",
            id="another endpoint",
        ),
        pytest.param(
            S3Bucket("images", endpoint="https://s3.example", addressing="virtual"),
            f"https://images.s3.example/{PATH}",
            id="another endpoint, by host",
        ),
    ],
)
async def test_public_and_presigned_links_have_the_host_of_the_bucket(
    bucket: S3Bucket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = BucketStore(S3Client(bucket))
    await store.open()
    assert store.public_url(NAME) == url
    link, life_s = await store.presign(NAME, ttl_s=600, head=False)
    assert (link.partition("?")[0], life_s) == (url, 600)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link
    objects = store.client._connection._objects  # type: ignore[attr-defined]
    assert objects._signer.url_of(bucket.path(PATH)) == url, "requests of our own go there, too"
    await store.aclose()
