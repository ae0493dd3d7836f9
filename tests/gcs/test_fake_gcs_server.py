"""fake-gcs-server behaves as the tests for Google Cloud Storage expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.gcs.fake_gcs_server import FakeGcsServer


async def test_object_is_listed_and_read_until_deleted(fake_gcs_server: FakeGcsServer) -> None:
    assert await fake_gcs_server.objects() == {}
    for name in ("v1/b", "v1/a", "v2/c"):
        await fake_gcs_server.put(name, name.encode(), "image/png")
    assert await fake_gcs_server.objects("v1/") == {"v1/a": b"v1/a", "v1/b": b"v1/b"}
    assert await fake_gcs_server.get("v2/c") == b"v2/c"
    head = await fake_gcs_server.head("v2/c")
    assert head is not None
    assert (head["size"], head["contentType"]) == ("4", "image/png")
    await fake_gcs_server.delete("v2/c")
    assert (await fake_gcs_server.get("v2/c"), await fake_gcs_server.head("v2/c")) == (None, None)
    assert set(await fake_gcs_server.objects()) == {"v1/a", "v1/b"}


async def test_buckets_share_nothing(fake_gcs_server: FakeGcsServer) -> None:
    await fake_gcs_server.put("a", b"body")
    assert await fake_gcs_server.with_bucket().objects() == {}


async def test_stopped_server_starts_again_on_its_port_without_its_objects(fake_gcs_server: FakeGcsServer) -> None:
    fake_gcs_server.stop()
    fake_gcs_server.start()
    assert await fake_gcs_server.with_bucket().objects() == {}
