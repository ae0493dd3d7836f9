"""Where a store is, read from its URL."""

from __future__ import annotations

import pytest

from imgkeep.core.store_url import (
    FOLDER_CHARS_MAX,
    AzureContainer,
    CloudinaryFolder,
    Folder,
    GcsBucket,
    RemotePlace,
    S3Bucket,
    StorePlace,
    read_store_url,
)
from tests.support.tables import table

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
    "a bucket of Google": ("gs://my-images", GcsBucket("my-images")),
    "a bucket of Google with dots and a prefix": ("gs://img.example.com/a/b/", GcsBucket("img.example.com", "a/b")),
    "a bucket of Google with an empty query": ("gs://my_images/?", GcsBucket("my_images")),
    "a container": ("az://images", AzureContainer("images")),
    "a container with all that there is": (
        "az://my-images/a%20b?account=acme01",
        AzureContainer("my-images", "a b", "acme01"),
    ),
    "a container with an empty account": ("az://images?account=", AzureContainer("images")),
    "a scheme in capitals": ("AZ://images", AzureContainer("images")),
    "a folder of Cloudinary": ("cloudinary:images", CloudinaryFolder("images")),
    "a folder in a folder of Cloudinary": (
        "cloudinary:/acme.com/my_images-1/",
        CloudinaryFolder("acme.com/my_images-1"),
    ),
    "all of Cloudinary": ("cloudinary:", CloudinaryFolder()),
    "the longest folder of Cloudinary": (
        "cloudinary:" + "a" * FOLDER_CHARS_MAX,
        CloudinaryFolder("a" * FOLDER_CHARS_MAX),
    ),
}


@table(("url", "place"), GOOD.values(), ids=GOOD)
def test_store_is_named_by_its_url(url: str, place: StorePlace) -> None:
    assert read_store_url(url) == place


BAD = {
    "a bare path": ("data", "expected file:PATH, s3://BUCKET/PREFIX, gs://"),
    "no folder": ("file:", "relative or absolute"),
    "a host": ("file://host/data", "relative or absolute"),
    "a NUL": ("file:a\0b", "relative or absolute"),
    "a scheme that there is not": ("ftp://host/data", "^expected file:PATH, s3://BUCKET/PREFIX, gs://"),
    "nothing": ("", "^expected file:PATH, s3://BUCKET/PREFIX, gs://"),
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
    "no bucket of Google": ("gs://", "^expected gs://BUCKET/PREFIX"),
    "a bucket of Google without slashes": ("gs:images", "^expected gs://BUCKET/PREFIX"),
    "a bucket of Google in capitals": ("gs://Images", "a name of 3 lower-case letters"),
    "a bucket of Google that is too short": ("gs://ab", "a name of 3 lower-case letters"),
    "a bucket of Google with a port": ("gs://images:443", "^expected gs://BUCKET/PREFIX"),
    "a bucket of Google with a fragment": ("gs://images#x", "^expected gs://BUCKET/PREFIX"),
    "a prefix of Google that is none": ("gs://images/a//b", "prefix"),
    "an endpoint of Google": (
        "gs://images?endpoint=http://127.0.0.1:4443",
        "^there is no parameter endpoint: behind the [?] expected nothing; STORAGE_EMULATOR_HOST in the environment",
    ),
    "no container": ("az://", "^expected az://CONTAINER/PREFIX"),
    "a container without slashes": ("az:images", "^expected az://CONTAINER/PREFIX"),
    "a container with two hyphens": ("az://my--images", "single hyphens"),
    "a container with a hyphen at its end": ("az://images-", "single hyphens"),
    "a container with a dot": ("az://my.images", "single hyphens"),
    "a container that is too long": ("az://" + "a" * 64, "3 to 63"),
    "the root container": ("az://$root", "^expected az://CONTAINER/PREFIX"),
    "the container of a website": ("az://$web", "^expected az://CONTAINER/PREFIX"),
    "a container with a fragment": ("az://images#x", "^expected az://CONTAINER/PREFIX"),
    "a prefix of Azure that is none": ("az://images/a/../b", "prefix"),
    "a prefix of Azure with a dot at its end": ("az://images/a./b", "ends with a dot"),
    "an account that is none": ("az://images?account=Acme", "^account: expected the name of a storage account"),
    "an account twice": ("az://images?account=abc&account=abc", "^account is given twice: "),
    "an endpoint of Azure": (
        "az://images?endpoint=http://127.0.0.1:10000",
        "^there is no parameter endpoint: behind the [?] expected account=; AZURE_STORAGE_CONNECTION_STRING in the",
    ),
    "a parent folder of Cloudinary": ("cloudinary:a/../b", "^expected cloudinary:FOLDER"),
    "an empty part of a folder of Cloudinary": ("cloudinary:a//b", "^expected cloudinary:FOLDER"),
    "a space in a folder of Cloudinary": ("cloudinary:a b", "^expected cloudinary:FOLDER"),
    "a query behind a folder of Cloudinary": ("cloudinary:a?b=c", "^expected cloudinary:FOLDER"),
    "a folder of Cloudinary with percent signs": ("cloudinary:a%2fb", "^expected cloudinary:FOLDER"),
    "a folder of Cloudinary that is too long": ("cloudinary:" + "a" * (FOLDER_CHARS_MAX + 1), "128 at most"),
    "a line break after a folder of Cloudinary": ("cloudinary:a\n", "^expected cloudinary:FOLDER"),
}


@table(("url", "reason"), BAD.values(), ids=BAD)
def test_invalid_url_is_refused_with_the_expected_form(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_store_url(url)


SECRETS = {
    "keys of AWS": ("s3://AKIA:hush@images/", "the environment or an AWS profile"),
    "keys of Google": ("gs://GOOG:hush@images/", "as Google's tools find them"),
    "key of a storage account": ("az://acme:hush@images/", "as Azure's tools find them"),
    "shared access signature": ("az://images?sv=2021-08-06&hush=", "AZURE_STORAGE_CONNECTION_STRING"),
    "signature with the account": ("az://images?account=acme&sig=hush", "there is no parameter sig"),
    "the variable of Cloudinary": ("cloudinary://123:hush@acme", "come from CLOUDINARY_URL in the environment"),
    "the variable of Cloudinary without slashes": ("cloudinary:123:hush@acme", "come from CLOUDINARY_URL"),
}


@pytest.mark.parametrize(("url", "reason"), SECRETS.values(), ids=SECRETS)
def test_credentials_in_a_url_are_not_repeated_in_the_message(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read_store_url(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [S3Bucket("images", "a/b"), GcsBucket("images", "a/b"), AzureContainer("images", "a/b"), CloudinaryFolder("a/b")],
    ids=lambda place: type(place).__name__,
)
def test_all_names_in_a_bucket_begin_with_the_prefix(place: RemotePlace) -> None:
    assert place.path("v1/x") == "a/b/v1/x"


@pytest.mark.parametrize(
    "place",
    [S3Bucket("images"), GcsBucket("images"), AzureContainer("images"), CloudinaryFolder()],
    ids=lambda place: type(place).__name__,
)
def test_names_without_a_prefix_are_those_of_the_layout(place: RemotePlace) -> None:
    assert place.path("v1/x") == "v1/x"


def test_place_describes_itself_to_an_operator() -> None:
    assert [
        str(place)
        for place in (
            S3Bucket("images"),
            S3Bucket("images", endpoint="https://s3.example"),
            GcsBucket("images"),
            AzureContainer("images"),
            CloudinaryFolder("images"),
            CloudinaryFolder(),
        )
    ] == [
        "bucket images",
        "bucket images at https://s3.example",
        "bucket images of Google Cloud Storage",
        "container images of Azure Blob Storage",
        "folder images of Cloudinary",
        "Cloudinary",
    ]
