"""The fast path and aiohttp send the same bytes and log the same facts, for every kind of URL."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from imgkeep.web.image_headers import IMAGE_CSP, SVG_CSP
from tests.support.image_requests import cached_target, fast_path_of, services_of
from tests.support.images import png_of
from tests.support.raw_http import ask, connect, port_of, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.raw_http import Answer
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = png_of(20_000)
FACTS = ("client", "method", "route", "key", "outcome", "status", "bytes")
PUBLIC = "https://img.example/base"


async def cached_url(imgkeep: Imgkeep, origin: FakeOrigin, kind: str) -> str:
    """Return a URL of a stored image whose response is cached."""
    target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    place = (await ask(imgkeep, target)).headers["content-location"]
    match kind:
        case "link":
            return target
        case "absolute":
            target = f"http://anywhere.example{target}"
        case "permanent":
            target = place.removeprefix(PUBLIC)
        case _:
            target = target_of(place)
    assert (await ask(imgkeep, target)).status == 200
    return target


def comparable(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    fields = {name: value for name, value in answer.headers.items() if name not in {"date", "connection"}}
    return answer.status, fields, answer.body


@pytest.mark.parametrize("kind", ["link", "absolute", "permanent", "our own as a source"])
@pytest.mark.parametrize(
    ("method", "field"),
    [("GET", "X: y"), ("HEAD", "X: y"), ("GET", "Range: bytes=5-99"), ("GET", "If-None-Match: *")],
    ids=["GET", "HEAD", "206", "304"],
)
async def test_every_url_gets_the_same_response_and_record(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture, *, kind: str, method: str, field: str
) -> None:
    imgkeep = await start(server={"public_url": PUBLIC, "trusted_proxies": ["127.0.0.0/8"]})
    target = await cached_url(imgkeep, origin, kind)
    fields = (field, "X-Forwarded-For: 203.0.113.9, 198.51.100.7")
    number = len(fast_path_of(imgkeep).response_cache)
    with caplog.at_level(logging.INFO, "imgkeep.access"):
        caplog.clear()
        over_aiohttp = await ask(imgkeep, target, *fields, method=method)
        image_service = services_of(imgkeep).image_service
        image_service.deliver = image_service.deliver_object = None  # type: ignore[assignment, method-assign]
        async with connect(port_of(imgkeep)) as line:
            fast = await line.ask(target, *fields, method=method)
    assert comparable(fast) == comparable(over_aiohttp)
    facts = [{name: getattr(record, name) for name in FACTS} for record in caplog.records]
    assert len(facts) == 2
    assert facts[0] == facts[1]
    assert facts[0]["key"]
    assert len(fast_path_of(imgkeep).response_cache) == number


@pytest.mark.parametrize(
    ("method", "field"),
    [("GET", "X: y"), ("HEAD", "X: y"), ("GET", "Range: bytes=5-9"), ("GET", "If-None-Match: *")],
    ids=["GET", "HEAD", "206", "304"],
)
async def test_svg_has_its_own_policy_on_the_fast_path_too(
    imgkeep: Imgkeep, origin: FakeOrigin, method: str, field: str
) -> None:
    """A 304 renews the header fields that a cache holds, so it has the policy, too."""
    vector = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>a</title></svg>'
    targets = {
        await cached_target(imgkeep, origin.gives("/a.svg", vector)): SVG_CSP,
        await cached_target(imgkeep, origin.gives("/a.png", IMAGE)): IMAGE_CSP,
    }
    for target, policy in targets.items():
        over_aiohttp = await ask(imgkeep, target, field, method=method)
        async with connect(port_of(imgkeep)) as line:
            fast = await line.ask(target, field, method=method)
        assert comparable(fast) == comparable(over_aiohttp)
        assert fast.headers["content-security-policy"] == policy


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("target", "fields", "status"),
    [
        (f"/images/{'0' * 64}.png", (), 404),
        ("/images/x", (), 404),
        ("/img?src=", (), 400),
        ("/img?src=ftp%3A%2F%2Fa.example%2Fa.png", (), 400),
        ("/img?src=http%3A%2F%2F10.0.0.1%2Fa.png", (), 403),
        ("/img?source=x", (), 400),
        ("/img?src=http%3A%2F%2Fa.example%2Fa.png", ("Via: 1.1 imgkeep",), 508),
        ("", ("Range: bytes=99999-",), 416),
        ("", ("Range: bytes=5-", 'If-Range: "x"'), 200),
        ("", ("If-None-Match: *",), 304),
    ],
    ids=["404", "no name", "no src", "ftp", "403", "400", "508", "416", "If-Range", "304"],
)
async def test_handlers_give_the_same_response_on_the_fast_path(  # noqa: PLR0917 - a table
    start: Start, origin: FakeOrigin, method: str, target: str, fields: tuple[str, ...], status: int
) -> None:
    imgkeep = await start(server={"public_url": PUBLIC})
    stored_target = await cached_target(imgkeep, origin.gives("/a.png", IMAGE))
    over_aiohttp = await ask(imgkeep, target or stored_target, *fields, method=method)
    cache = fast_path_of(imgkeep).response_cache
    for key in list(cache._targets):
        cache.invalidate(key)
    async with connect(port_of(imgkeep)) as line:
        fast = await line.ask(target or stored_target, *fields, method=method)
    if method == "HEAD" and status == 416:
        status = 200  # RFC 9110, 14.2: a range is for GET
    assert over_aiohttp.status == fast.status == status
    dull = {"content-type", "content-length"} if status in {304, 416} else set()
    assert {name: value for name, value in comparable(fast)[1].items() if name not in dull} == {
        name: value for name, value in comparable(over_aiohttp)[1].items() if name not in dull
    }
    assert fast.body == over_aiohttp.body
