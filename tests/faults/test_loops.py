"""A source that is this server, directly or through others, ends after one loop (O18), and a hit is no loop."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from multidict import CIMultiDict

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image
from tests.support.network import PUBLIC, Dials, Names, look, nothing_kept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    StartImgkeep = Callable[..., Awaitable[Imgkeep]]

FROM_US = {
    "CDN-Loop": [("CDN-Loop", "imgkeep")],
    "CDN-Loop among others": [("CDN-Loop", 'cdn.example; a="b", imgkeep; node=2, other')],
    "CDN-Loop of several lines": [("CDN-Loop", "cdn.example"), ("CDN-Loop", "imgkeep")],
    "CDN-Loop in capitals": [("cdn-loop", "ImgKeep")],
    "Via": [("Via", "1.1 imgkeep")],
    "Via among others": [("Via", "1.0 fred, HTTP/1.1 imgkeep (a comment), 1.1 nginx")],
    "Via of several lines": [("Via", "1.1 nginx"), ("Via", "1.1 imgkeep")],
}


def through(imgkeep: Imgkeep, url: str) -> str:
    """Return the URL by which this imgkeep gives `url`."""
    return f"{imgkeep.client.make_url('/img')}?src={quote(url, safe='')}"


def _own_ports(imgkeep: Imgkeep) -> set[int]:
    assert imgkeep.client.app is not None
    services = imgkeep.client.app[SERVICES]
    assert services is not None
    return services.own_ports


@pytest.mark.parametrize("headers", FROM_US.values(), ids=FROM_US.keys())
async def test_other_node_gets_stored_images_and_no_fill(
    imgkeep: Imgkeep, origin: FakeOrigin, headers: list[tuple[str, str]]
) -> None:
    url = origin.gives("/a.png", make_image())
    refused = await look(imgkeep, url, headers=CIMultiDict(headers))
    assert (refused.status, refused.code, origin.seen) == (508, "loop_detected", [])
    assert (await look(imgkeep, url)).status == 200
    hit = await look(imgkeep, url, headers=CIMultiDict(headers))
    assert (hit.status, hit.body, hit.headers["Cache-Status"]) == (200, make_image(), "imgkeep; hit")


@pytest.mark.parametrize(
    "headers",
    [{"CDN-Loop": "notimgkeep"}, {"Via": "1.1 imgkeep.example"}, {"Via": "imgkeep"}, {"CDN-Loop": "a; b=imgkeep"}],
    ids=str,
)
async def test_other_nodes_are_ordinary_clients(imgkeep: Imgkeep, origin: FakeOrigin, headers: dict[str, str]) -> None:
    assert (await look(imgkeep, origin.gives("/a.png", make_image()), headers=headers)).status == 200


async def test_source_on_this_server_loops_once(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    seen = await look(imgkeep, through(imgkeep, through(imgkeep, url)))
    assert (seen.status, seen.code, origin.seen) == (508, "loop_detected", [])
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.255.255.254"])
async def test_own_address_and_port_are_not_connected_to(start: StartImgkeep, origin: FakeOrigin, host: str) -> None:
    dials = Dials(origin)
    imgkeep = await start(platform=Platform(open_socket=dials))
    _own_ports(imgkeep).add(8443)
    seen = await look(imgkeep, f"http://{host}:8443/a.png")
    assert (seen.status, seen.code, dials.made) == (508, "loop_detected", [])
    origin.gives("/a.png", make_image())
    assert (await look(imgkeep, f"http://{host}:8080/a.png")).status == 200


async def test_own_name_and_port_are_not_connected_to(start: StartImgkeep, origin: FakeOrigin) -> None:
    dials = Dials(origin)
    imgkeep = await start(platform=Platform(resolver=lambda: Names(default=["127.0.0.1"]), open_socket=dials))
    _own_ports(imgkeep).add(8443)
    seen = await look(imgkeep, "http://img.example.com:8443/a.png")
    assert (seen.status, seen.code, dials.made) == (508, "loop_detected", [])


async def test_same_port_of_another_machine_is_allowed(start: StartImgkeep, origin: FakeOrigin) -> None:
    origin.gives("/a.png", make_image())
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin))
    imgkeep = await start(platform=platform, fetch={"allow_networks": []})
    _own_ports(imgkeep).add(8080)
    assert (await look(imgkeep, "http://example.com:8080/a.png")).status == 200


async def test_chain_through_a_second_node_ends_there(start: StartImgkeep, origin: FakeOrigin, tmp_path: Path) -> None:
    first, second = await start(), await start(folder=tmp_path / "second")
    url = origin.gives("/a.png", make_image())
    seen = await look(first, through(second, url))
    assert (seen.status, seen.code, origin.seen) == (508, "loop_detected", [])
    await nothing_kept(first)
    await nothing_kept(second)


async def test_redirect_to_a_second_node_ends_there(start: StartImgkeep, origin: FakeOrigin, tmp_path: Path) -> None:
    first, second = await start(), await start(folder=tmp_path / "second")
    url = origin.gives("/a.png", make_image())
    round_about = origin.gives("/r.png", b"", status="302 Found", headers={"Location": through(second, url)})
    seen = await look(first, round_about)
    assert (seen.status, seen.code, origin.asked("/a.png")) == (508, "loop_detected", 0)


async def test_node_gets_the_stored_image_of_another(start: StartImgkeep, origin: FakeOrigin, tmp_path: Path) -> None:
    first, second = await start(), await start(folder=tmp_path / "second")
    url = origin.gives("/a.png", make_image())
    kept = await look(second, url)
    seen = await look(first, through(second, url))
    assert (seen.status, seen.body) == (200, kept.body)
    assert origin.asked("/a.png") == 1


async def test_source_under_the_public_url_is_never_fetched(start: StartImgkeep, origin: FakeOrigin) -> None:
    dials = Dials(origin)
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=dials)
    imgkeep = await start(platform=platform, server={"public_url": "http://img.example.com/base"})
    origin.gives("/a.png", make_image())
    kept = await look(imgkeep, "http://example.com/a.png")
    permanent = (await look(imgkeep, "http://example.com/a.png")).headers["Content-Location"]
    assert permanent.startswith("http://img.example.com/base/images/")
    made = len(dials.made)
    for spelling in (permanent, f"{permanent}?", permanent.replace("http://img.", "HTTP://IMG."), f"{permanent}#a"):
        seen = await look(imgkeep, spelling)
        assert (seen.status, seen.body) == (200, kept.body)
    for path in (
        "/img?src=http%3A%2F%2Fexample.com%2Fa.png",
        "/images/",
        f"/images/{'0' * 64}.png",
        "/healthz",
        "/",
        "/images/../img?src=http%3A%2F%2Fexample.com%2Fa.png",
    ):
        seen = await look(imgkeep, f"http://img.example.com/base{path}")
        assert (seen.status, seen.code) == (508, "loop_detected"), path
    assert len(dials.made) == made


async def test_508_of_an_origin_is_a_loop(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    seen = await look(imgkeep, origin.gives("/a.png", b"", status="508 Loop Detected"))
    assert (seen.status, seen.code) == (508, "loop_detected")
