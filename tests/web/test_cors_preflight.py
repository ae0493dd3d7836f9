"""Scripts of other sites may ask for images with any header field, and read what is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.image_requests import fills_done
from tests.support.images import make_image
from tests.support.raw_http import ask, port_of, split, talk, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

ORIGIN = "Origin: https://p.example"
TARGETS = [
    "/img?src=https%3A%2F%2Fa.example%2Fa.png",
    "/img",
    "/images/" + "0" * 64 + ".png",
    "/images/x",
    "/old/x/a.png",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_preflight_allows_the_methods_of_images(start: Start, target: str) -> None:
    imgkeep = await start(legacy=[{"mount": "old"}], security={"signature": "always", "signing_keys": ["k" * 20]})
    asked = [ORIGIN, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: range, x-anything"]
    for fields in (asked, [*asked, "Access-Control-Request-Private-Network: true"], []):
        answer = await ask(imgkeep, target, *fields, method="OPTIONS")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
        assert {"range", "if-none-match", "if-range"} <= set(allowed)
        assert ("x-anything" in allowed) == bool(fields)
        assert "*" not in allowed
        assert int(answer.headers["access-control-max-age"]) > 0
        assert "access-control-allow-credentials" not in answer.headers
        assert "access-control-allow-private-network" not in answer.headers
        assert answer.headers["vary"] == "Access-Control-Request-Headers"
        assert "content-length" not in answer.headers


@pytest.mark.parametrize("field", ["Authorization", "X-Forwarded-For", "Forwarded", "CF-Connecting-IP", "CDN-Loop"])
async def test_preflight_allows_no_identifying_field(imgkeep: Imgkeep, field: str) -> None:
    fields = [ORIGIN, "Access-Control-Request-Method: GET", f"Access-Control-Request-Headers: range, {field.lower()}"]
    answer = await ask(imgkeep, TARGETS[0], *fields, method="OPTIONS")
    assert answer.status == 204
    assert field.lower() not in answer.headers["access-control-allow-headers"].split(", ")


@pytest.mark.parametrize("target", ["/api/images", "/api/save-image", "/api/inspect?src=x"])
async def test_api_answers_no_preflight(imgkeep: Imgkeep, target: str) -> None:
    fields = [ORIGIN, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization"]
    answer = await ask(imgkeep, target, *fields, method="OPTIONS")
    assert answer.status in {401, 405}
    assert "access-control-allow-headers" not in answer.headers


async def test_rebound_name_gets_no_preflight(imgkeep: Imgkeep) -> None:
    sent = b"OPTIONS /img?src=x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert split(await talk(port_of(imgkeep), sent)).status == 403


async def test_scripts_may_read_the_fields_of_an_image(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    target = target_of(origin.gives("/a.png", make_image()))
    first = await ask(imgkeep, target, ORIGIN)
    await fills_done(imgkeep)
    answers = [first, *[await ask(imgkeep, target, ORIGIN, *more) for more in ([], ["Range: bytes=0-1"])]]
    answers += [await ask(imgkeep, target, ORIGIN, "If-None-Match: *"), await ask(imgkeep, "/images/x", ORIGIN)]
    assert [answer.status for answer in answers] == [200, 200, 206, 304, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"Cache-Status", "Content-Location", "ETag", "Retry-After"} <= set(exposed)


async def test_image_does_not_vary(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """A cache in front keeps one copy for all: no answer with an image depends on a field of its request."""
    target = target_of(origin.gives("/a.png", make_image()))
    for fields in ([], [ORIGIN], ["Accept: text/html"], ["Sec-Fetch-Dest: document"], ["Range: bytes=0-1"]):
        answer = await ask(imgkeep, target, *fields)
        assert answer.status in {200, 206}
        assert "vary" not in answer.headers
        assert "set-cookie" not in answer.headers
