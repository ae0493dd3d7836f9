"""URLs of imageproxy, thumbor and Next.js under their mounts go the way of `/img`."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from hashlib import sha1, sha256
from hmac import digest
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from yarl import URL

from imgkeep.bootstrap.platform import Platform
from imgkeep.clock import read_clock
from tests.support.images import make_image
from tests.support.picture_program import COMMAND, picture_of
from tests.support.raw_http import port_of, request, split, talk
from tests.support.signing_vectors import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import ClientResponse

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

MOUNTS = {"imageproxy": "/ip", "thumbor": "/", "nextjs": "/_next/image"}
PLATFORM = Platform(derive_command=COMMAND)
FOREIGN_KEY = "a-key-of-the-other-server"


REFUSED = [
    ("/ip/100,fv/{}", 501, "not_supported"),
    ("/ip/100,r45/{}", 400, "invalid_option"),
    ("/unsafe/-300x200/{}", 501, "not_supported"),
    ("/unsafe/filters:grayscale()/{}", 501, "not_supported"),
    ("/_next/image?url=%2Fa.png&w=640&q=75", 501, "not_supported"),
    ("/_next/image?url={}", 400, "invalid_option"),
    ("/_next/image", 400, "invalid_source"),
    ("/ip/100x/ftp://h.example/a", 404, "not_found"),
    ("/ip/x", 404, "not_found"),
    ("/favicon.ico", 404, "not_found"),
    ("/no/page", 404, "not_found"),
    ("/_next/image/x?url={}&w=640", 404, "not_found"),
    ("/%69p/0x0/{}", 404, "not_found"),
    ("/unsafe/10.0.0.1/a.png", 403, "source_forbidden"),
    ("/ip/0x0/https://user:password@h.example/", 403, "source_forbidden"),
    (f"/{'a' * 27}=/{{}}", 403, "signature_invalid"),
]


PICTURES = [
    ("/ip/30x20,q80/{}", "w30-h20-cover-q80", "PNG"),
    ("/ip/30x20,fit,jpeg/{}", "w30-h20", "JPEG"),
    ("/unsafe/30x20/left/filters:rotate(90):format(webp)/{}", "w20-h30-cover-south-r270", "WEBP"),
    ("/_next/image?url={}&w=64&q=75", "w64", "AVIF"),
]


async def get(imgkeep: Imgkeep, target: str, **how: Any) -> ClientResponse:
    return await imgkeep.client.request(how.pop("method", "GET"), URL(target, encoded=True), **how)


async def code_of(imgkeep: Imgkeep, target: str) -> tuple[int, str]:
    response = await get(imgkeep, target)
    return response.status, (await response.json())["code"]


async def test_each_form_of_url_shows_the_image_that_img_shows(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    imgkeep, body = await start(derive=MOUNTS), make_image()
    source = origin.gives("/a.png", body)
    encoded = quote(source, safe="")
    for target in (
        f"/ip/{source}",
        f"/ip/0x0/{source}",
        f"/ip//{encoded}",
        f"/ip/x/{urlsafe_b64encode(source.encode()).decode().rstrip('=')}",
        f"/unsafe/{encoded}",
        f"/unsafe/0x0/smart/filters:strip_exif()/{source}",
        f"/unsafe/{source.removeprefix('http://')}",
        f"/img?src={encoded}",
    ):
        response = await get(imgkeep, target)
        assert (response.status, await response.read()) == (200, body), target
        response = await get(imgkeep, target, method="HEAD")
        assert (response.status, response.headers["Content-Length"]) == (200, str(len(body)))
    assert origin.asked("/a.png") == 1


async def test_query_behind_a_plain_source_belongs_to_it(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    imgkeep = await start(derive=MOUNTS)
    source = origin.gives("/a.png", make_image()) + "?x=%2F&w=5"
    assert (await get(imgkeep, f"/ip/0x0/{source}")).status == 200
    assert await code_of(imgkeep, f"/unsafe/{source}") == (400, "invalid_source")
    assert [exchange.target for exchange in origin.seen] == ["/a.png?x=%2F&w=5"]


async def test_url_that_is_refused_has_a_code(start: Callable[..., Awaitable[Imgkeep]]) -> None:
    imgkeep = await start(derive=MOUNTS)
    for target, status, code in REFUSED:
        assert await code_of(imgkeep, target.format("https://h.example/a.png")) == (status, code), target


async def test_without_a_setting_there_is_no_mount(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    source = origin.gives("/a.png", make_image())
    for target in (f"/unsafe/{source}", f"/imageproxy/0x0/{source}", f"/_next/image?url={source}&w=640"):
        assert (await get(imgkeep, target)).status == 404


async def test_own_paths_come_before_a_mount_at_the_root(start: Callable[..., Awaitable[Imgkeep]]) -> None:
    imgkeep = await start(derive={"imageproxy": "/"})
    assert (await get(imgkeep, "/healthz")).status == 200
    assert await code_of(imgkeep, "/img") == (400, "invalid_source")
    assert (await get(imgkeep, "/api/images", headers={"Authorization": f"Bearer {imgkeep.token}"})).status == 200


async def test_target_in_absolute_form_is_served(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    imgkeep = await start(derive=MOUNTS)
    source, port = origin.gives("/a.png", make_image()), port_of(imgkeep)
    answer = split(await talk(port, request(f"http://127.0.0.1:{port}/ip/0x0/{source}")))
    assert answer.status == 200


async def test_signature_of_the_other_server_counts_as_ours(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    keys = {"imageproxy_key": FOREIGN_KEY, "thumbor_key": FOREIGN_KEY}
    imgkeep = await start(derive=MOUNTS | keys, security={"signature": "always", "signing_keys": [KEY]})
    source = origin.gives("/a.png", make_image())
    secret, rest = FOREIGN_KEY.encode(), f"0x0/{quote(source, safe='')}"
    thumbor = urlsafe_b64encode(digest(secret, rest.encode(), sha1)).decode()
    for of, text in (("imageproxy", source), ("imageproxy", f"{source}#0x0")):
        mac = urlsafe_b64encode(digest(secret, text.encode(), sha256)).decode()
        assert (await get(imgkeep, f"/ip/s{mac}/{source}")).status == 200, of
        assert await code_of(imgkeep, f"/ip/s{mac}/{source}x") == (403, "signature_invalid")
    assert (await get(imgkeep, f"/{thumbor}/{rest}")).status == 200
    assert await code_of(imgkeep, f"/{thumbor}/1{rest}") == (403, "signature_invalid")
    for target in (f"/unsafe/{rest}", f"/ip/0x0/{source}", f"/_next/image?{urlencode({'url': source, 'w': 640})}"):
        assert await code_of(imgkeep, target) == (403, "signature_required")


async def test_options_of_the_other_server_make_a_picture(
    start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin
) -> None:
    imgkeep = await start(platform=PLATFORM, derive=MOUNTS)
    source = origin.gives("/a.png", make_image())
    for target, stem, format_ in PICTURES:
        for _ in range(2):
            response = await get(imgkeep, target.format(source), headers={"Accept": "image/avif,*/*"})
            assert (response.status, await response.read()) == (200, picture_of(stem, format_))
            assert response.headers.get("Vary") == ("Accept" if "_next" in target else None)
    assert origin.asked("/a.png") == 1


async def test_rights_are_those_of_img(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    keys = {"imageproxy_key": FOREIGN_KEY, "thumbor_key": FOREIGN_KEY}
    imgkeep = await start(platform=PLATFORM, derive={"allow": "signed", **MOUNTS, **keys})
    source, secret = origin.gives("/a.png", make_image()), FOREIGN_KEY.encode()
    for target in (f"/ip/64x/{source}", f"/unsafe/fit-in/64x0/{source}", f"/_next/image?url={source}&w=640&q=75"):
        assert (await get(imgkeep, target)).status == 200
    of_source = urlsafe_b64encode(digest(secret, source.encode(), sha256)).decode()
    for target in (f"/ip/30x20/{source}", f"/ip/30x20,s{of_source}/{source}", f"/unsafe/30x20/{source}"):
        assert await code_of(imgkeep, target) == (403, "options_forbidden")
    of_all = urlsafe_b64encode(digest(secret, f"{source}#30x20".encode(), sha256)).decode()
    thumbor = urlsafe_b64encode(digest(secret, f"30x20/{source}".encode(), sha1)).decode()
    for target in (f"/ip/30x20,s{of_all}/{source}", f"/{thumbor}/30x20/{source}"):
        assert (await get(imgkeep, target)).status == 200
    assert await code_of(imgkeep, f"/ip/99999x/{source}") == (400, "invalid_option")


async def test_url_of_imageproxy_has_an_end(start: Callable[..., Awaitable[Imgkeep]], origin: FakeOrigin) -> None:
    imgkeep = await start(derive=MOUNTS)
    source = origin.gives("/a.png", make_image())
    assert await code_of(imgkeep, f"/ip/vu1000000000/{source}") == (403, "signature_expired")
    soon = int(read_clock().timestamp()) + 90
    response = await get(imgkeep, f"/ip/vu{soon}/{source}")
    age = re.search(r"max-age=(\d+)", response.headers["Cache-Control"])
    assert age is not None
    assert int(age[1]) <= 90


async def test_scripts_of_other_sites_may_ask(start: Callable[..., Awaitable[Imgkeep]]) -> None:
    imgkeep = await start(derive=MOUNTS)
    for target in ("/unsafe/300x200/h.example/a.png", "/_next/image"):
        response = await get(imgkeep, target, method="OPTIONS", headers={"Access-Control-Request-Method": "GET"})
        assert response.headers["Access-Control-Allow-Origin"] == "*"
