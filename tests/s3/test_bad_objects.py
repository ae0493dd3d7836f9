"""What is under our names in a bucket and is not ours, or not whole: it is never served, and nothing is lost."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientPayloadError

from tests.support.images import make_image, png_of
from tests.support.s3.remote import get

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.origins import FakeOrigin
    from tests.support.s3.remote import Remote

BODY = make_image()
DIGEST = sha256(BODY).hexdigest()
LARGE = png_of(2_000_000)


def of_another_key(record: bytes) -> bytes:
    return record.replace(json.loads(record)["key"].encode(), b"a" * 64)


def with_field(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda record: json.dumps({**json.loads(record), name: value}).encode()


RECORDS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda record: record[: len(record) // 2],
    "a page": lambda _: b"<html>moved</html>",
    "other JSON": lambda _: b'{"version": 1, "name": "settings"}',
    "no UTF-8": lambda record: record.replace(b'"host": "', b'"host": "\xff\xfe'),
    "nested too deep": lambda _: b'{"version": 1, "new": ' + b"[" * 60_000,
    "larger than a record": lambda record: b" " * 1_000_000 + record,
    "of another key": of_another_key,
    "etag with another header field": with_field("etag", '"a"\r\nSet-Cookie: a=b\r\nX: "b"'),
    "larger than any number": with_field("size", 10**30),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
async def test_bad_record_goes_to_quarantine_and_the_image_is_fetched_again(
    remote: Remote, origin: FakeOrigin, damage: Callable[[bytes], bytes]
) -> None:
    url = origin.gives("/a.png", BODY)
    await get(await remote.node(), url)
    ((name, record),) = (await remote.stored("records")).items()
    bad = damage(record)
    await remote.server.put(name, bad)
    response, body = await get(await remote.node("b"), url)
    assert (response.status, body, response.headers["Cache-Status"]) == (200, BODY, "imgkeep; fwd=uri-miss; stored")
    assert list((await remote.server.objects("pre/damaged/")).values()) == [bad]
    assert json.loads((await remote.stored("records"))[name])["digest"] == DIGEST
    assert list((await remote.stored("objects")).values()) == [BODY]


OBJECTS: dict[str, tuple[bytes, bytes]] = {
    "empty": (BODY, b""),
    "cut": (BODY, BODY[:-1]),
    "another image": (BODY, make_image(seed=9)),
    "another image of the same size": (BODY, BODY[:-1] + b"\0"),
    "a large one with other bytes": (LARGE, LARGE[:1_000_000] + b"\0" * 1_000_000),
}


@pytest.mark.parametrize(("good", "bad"), OBJECTS.values(), ids=OBJECTS)
async def test_bad_object_is_never_served_and_goes_to_quarantine(
    remote: Remote, origin: FakeOrigin, good: bytes, bad: bytes
) -> None:
    url = origin.gives("/a.png", good)
    await get(await remote.node(), url)
    (name,) = await remote.stored("objects")
    await remote.server.put(name, bad)
    node = await remote.node("b")
    permanent = f"/images/{name.rpartition('/')[2]}"
    for _ in range(2):
        async with node.client.get(permanent) as response:
            try:
                received = await response.read()
            except ClientPayloadError:
                continue  # broken off before its last byte
            assert (response.status == 200, received == bad) == (False, False)
    assert list((await remote.server.objects("pre/damaged/")).values()) == [bad]
    for _ in range(2):
        response, received = await get(node, url)
        assert (response.status, received) == (200, good)
    assert list((await remote.stored("objects")).values()) == [good]
