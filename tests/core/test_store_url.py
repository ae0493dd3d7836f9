"""Where a store is, read from its URL."""

from __future__ import annotations

import pytest

from imgkeep.core.store_url import Folder, S3Bucket, read_store_url

GOOD = {
    "a relative folder": ("file:data", Folder("data")),
    "an absolute folder": ("file:/var/lib/x", Folder("/var/lib/x")),
    "an absolute folder as a URL": ("file:///var/lib/x", Folder("/var/lib/x")),
    "a bucket": ("s3://images", S3Bucket("images")),
    "a bucket with an empty query": ("s3://images?region=&endpoint=&addressing=", S3Bucket("images")),
    "a prefix": ("s3://images/a/b/", S3Bucket("images", "a/b")),
    "an encoded prefix": ("s3://images/a%20b", S3Bucket("images", "a b")),
    "everything": (
        "s3://my.images/p?region=eu-central-1&endpoint=https%3A%2F%2Fs3.example%3A9000%2F&addressing=virtual",
        S3Bucket("my.images", "p", "eu-central-1", "https://s3.example:9000", "virtual"),
    ),
    "the usual addressing": ("s3://images?addressing=auto", S3Bucket("images")),
    "an endpoint that is not encoded": (
        "s3://images?endpoint=http://127.0.0.1:9000&addressing=path",
        S3Bucket("images", endpoint="http://127.0.0.1:9000", addressing="path"),
    ),
}


@pytest.mark.parametrize(("url", "place"), GOOD.values(), ids=GOOD)
def test_store_is_named_by_its_url(url: str, place: Folder | S3Bucket) -> None:
    assert read_store_url(url) == place


BAD = {
    "a bare path": ("data", "expected file:PATH or s3://BUCKET/PREFIX"),
    "no folder": ("file:", "relative or absolute"),
    "a host": ("file://host/data", "relative or absolute"),
    "a NUL": ("file:a\0b", "relative or absolute"),
    "another cloud": ("gs://images", "this version has no such store"),
    "a scheme that there is not": ("ftp://host/data", "^expected file:PATH or s3://BUCKET/PREFIX"),
    "nothing": ("", "^expected file:PATH or s3://BUCKET/PREFIX"),
    "a later store": ("az://images", "this version has no such store"),
    "a scheme without slashes": ("s3:images", "expected s3://BUCKET/PREFIX"),
    "a bucket with a port": ("s3://images:9000", "expected s3://BUCKET/PREFIX"),
    "no bucket": ("s3://", "expected s3://BUCKET/PREFIX"),
    "a bucket that is none": ("s3://-", "expected s3://BUCKET/PREFIX"),
    "a fragment": ("s3://images#x", "expected s3://BUCKET/PREFIX"),
    "dots in the prefix": ("s3://images/a/../b", "prefix"),
    "an empty part of the prefix": ("s3://images/a//b", "prefix"),
    "encoded dots in the prefix": ("s3://images/a/%2e%2e/b", "prefix"),
    "a prefix too long": ("s3://images/" + "a" * 513, "prefix"),
    "a control character in the prefix": ("s3://images/a%00b", "prefix"),
    "an unknown parameter": ("s3://images?acl=public", "region=, endpoint= and addressing="),
    "a parameter twice": ("s3://images?region=a&region=b", "region is given twice: .*each once"),
    "a misspelt parameter": ("s3://images?regoin=a", "there is no parameter regoin: behind the [?] expected region="),
    "a parameter that may be a secret": ("s3://images?a.b=c", "^behind the [?] expected region="),
    "a name that is too short": ("s3://ab", "a name of 3 letters"),
    "an unknown addressing": ("s3://images?addressing=host", "addressing: expected"),
    "a region that is none": ("s3://images?region=a/b", "region: expected"),
    "an endpoint without scheme": ("s3://images?endpoint=s3.example", "endpoint: expected"),
    "an endpoint of another scheme": ("s3://images?endpoint=ftp://s3.example", "endpoint: expected"),
    "an endpoint without host": ("s3://images?endpoint=http://", "endpoint: expected"),
    "an endpoint with a query": ("s3://images?endpoint=http%3A%2F%2Fa%3Fb%3D1", "endpoint: expected"),
    "an endpoint with a port that is none": ("s3://images?endpoint=http://a:99999", "endpoint: expected"),
    "an endpoint with a fragment": ("s3://images?endpoint=http%3A%2F%2Fa%23b", "endpoint: expected"),
    "an endpoint with half an address": ("s3://images?endpoint=http://[x", "endpoint: expected"),
    "a bucket with half an address": ("s3://[x", "expected s3://BUCKET/PREFIX"),
    "a tab in the bucket": ("s3://ima\tges", "expected s3://BUCKET/PREFIX"),
    "an endpoint with credentials": ("s3://images?endpoint=http://a:b@c", "endpoint: expected"),
}


@pytest.mark.parametrize(("url", "reason"), BAD.values(), ids=BAD)
def test_invalid_url_is_refused_with_the_expected_form(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_store_url(url)


def test_credentials_in_a_url_are_not_repeated_in_the_message() -> None:
    with pytest.raises(ValueError, match="credentials come from the environment") as caught:
        read_store_url("s3://AKIA:hush@images/")
    assert "hush" not in str(caught.value)


def test_all_names_in_a_bucket_begin_with_the_prefix() -> None:
    assert S3Bucket("images", "a/b").path("v1/x") == "a/b/v1/x"
    assert S3Bucket("images").path("v1/x") == "v1/x"
