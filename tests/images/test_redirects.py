"""The URLs that clients are redirected to, and how long they may remember them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.images.object_urls import ObjectUrls
from tests.support.fakes import Timer

if TYPE_CHECKING:
    from typing import Literal

NAME = "a" * 64 + ".png"


class FakeBucket:
    """Has what a test says, and numbers its presigned URLs."""

    def __init__(self) -> None:
        self.here = True
        self.life_s = 3600
        self.links = 0
        self.fault: StorageError | None = None

    async def has(self, _name: str) -> bool:
        return self.here

    async def presign(self, name: str, ttl_s: int, head: bool) -> tuple[str, int]:  # noqa: FBT001 - as it is called
        if self.fault is not None:
            raise self.fault
        self.links += 1
        return f"https://bucket.example/{name}?{'head' if head else 'get'}={self.links}", min(ttl_s, self.life_s)


def object_urls(
    bucket: FakeBucket,
    timer: Timer,
    mode: Literal["serve", "redirect", "presign"],
    *,
    public: bool = False,
    works: bool = True,
) -> ObjectUrls:
    return ObjectUrls(
        mode,
        has_object=bucket.has,
        presign=bucket.presign,
        public_url=(lambda name: f"https://public.example/{name}") if public else None,
        is_public=lambda: works,
        presign_ttl_s=3600,
        timer=timer,
    )


async def test_presigned_url_is_reused_for_half_of_its_life() -> None:
    bucket, timer = FakeBucket(), Timer()
    found = object_urls(bucket, timer, "presign")
    first = await found.find(NAME, head=False)
    assert first is not None
    assert (first.max_age_s, first.private) == (1800, True)
    timer.seconds += 1799
    again = await found.find(NAME, head=False)
    assert again is not None
    assert (again.url, again.max_age_s) == (first.url, 1)
    timer.seconds += 2
    later = await found.find(NAME, head=False)
    assert later is not None
    assert later.url != first.url
    assert later.max_age_s == 1800


async def test_temporary_credentials_shorten_its_life() -> None:
    bucket = FakeBucket()
    bucket.life_s = 600
    address = await object_urls(bucket, Timer(), "presign").find(NAME, head=False)
    assert address is not None
    assert address.max_age_s == 300


async def test_get_and_head_have_separate_urls() -> None:
    found = object_urls(FakeBucket(), Timer(), "presign")
    urls = {address.url for head in (True, False, True) if (address := await found.find(NAME, head=head))}
    assert len(urls) == 2


@pytest.mark.parametrize("mode", ["redirect", "presign"])
async def test_missing_object_redirects_no_client(mode: Literal["redirect", "presign"]) -> None:
    bucket = FakeBucket()
    bucket.here = False
    assert await object_urls(bucket, Timer(), mode, public=True).find(NAME, head=False) is None


async def test_bucket_that_is_not_public_redirects_no_client() -> None:
    works = object_urls(FakeBucket(), Timer(), "redirect", public=True)
    assert await works.find(NAME, head=False) is not None
    refused = object_urls(FakeBucket(), Timer(), "redirect", public=True, works=False)
    assert await refused.find(NAME, head=False) is None
    assert refused.permanent(NAME) == works.permanent(NAME), "a URL for databases stays as configured"


async def test_failure_to_presign_serves_the_image() -> None:
    bucket = FakeBucket()
    bucket.fault = StorageError("no credentials")
    assert await object_urls(bucket, Timer(), "presign").find(NAME, head=False) is None


async def test_public_base_gives_permanent_urls_where_images_are_served() -> None:
    found = object_urls(FakeBucket(), Timer(), "serve", public=True)
    assert await found.find(NAME, head=False) is None
    assert found.permanent(NAME) == f"https://public.example/{NAME}"
    assert object_urls(FakeBucket(), Timer(), "presign").permanent(NAME) is None
