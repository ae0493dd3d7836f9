"""Names that do not resolve, or to something else the next time, and certificates that prove nothing (O12, O17)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from aiohttp import TCPConnector

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image
from tests.support.network import (
    NO_SUCH_NAME,
    PUBLIC,
    SERVER_FAILURE,
    Dials,
    Names,
    client_context,
    counted,
    look,
    nothing_kept,
    server_context,
)
from tests.support.origins import FakeOrigin

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgkeep.origin.client import OriginClient
    from tests.support.network import Addresses
    from tests.support.origins import Exchange
    from tests.support.server import Imgkeep

    StartImgkeep = Callable[..., Awaitable[Imgkeep]]

PAST = datetime(2020, 1, 1, tzinfo=UTC)
LONG_PAST = datetime(2019, 1, 1, tzinfo=UTC)

CERTIFICATES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "expired": (("example.com",), {"not_before": LONG_PAST, "not_after": PAST}),
    "another host's": (("example.org",), {}),
    "a parent's": (("com",), {}),
    "another authority's": (("example.com",), {"ca": trustme.CA()}),
}


def forget_names(client: OriginClient) -> None:
    """Let the cached answers of the resolver run out."""
    connector = client._session.connector
    assert isinstance(connector, TCPConnector)
    connector.clear_dns_cache()


@pytest.fixture
async def secure() -> AsyncIterator[Callable[[ssl.SSLContext], Awaitable[FakeOrigin]]]:
    """Start TLS origins that have an image at /a.png."""
    origins: list[FakeOrigin] = []

    async def start_one(context: ssl.SSLContext) -> FakeOrigin:
        origin = FakeOrigin(ssl=context)
        await origin.start()
        origin.gives("/a.png", make_image())
        origins.append(origin)
        return origin

    yield start_one
    for origin in origins:
        await origin.stop()


@pytest.mark.parametrize(("names", "how"), CERTIFICATES.values(), ids=CERTIFICATES.keys())
async def test_bad_certificate_is_refused_without_retry(
    start: StartImgkeep,
    origin: FakeOrigin,
    secure: Callable[[ssl.SSLContext], Awaitable[FakeOrigin]],
    names: tuple[str, ...],
    how: dict[str, Any],
) -> None:
    tls = await secure(server_context(*names, **how))
    dials = Dials(origin, tls)
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=dials, ssl_context=client_context())
    imgkeep = await start(platform=platform, fetch={"retries_max": 2, "allow_networks": []})
    seen = await look(imgkeep, "https://example.com/a.png")
    assert (seen.status, seen.code) == (502, "origin_error")
    assert (len(dials.made), tls.seen) == (1, [])
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="origin_error"}') == 1
    await nothing_kept(imgkeep)


async def test_unknown_authority_is_refused_by_default(
    start: StartImgkeep, origin: FakeOrigin, secure: Callable[[ssl.SSLContext], Awaitable[FakeOrigin]]
) -> None:
    tls = await secure(server_context("example.com"))
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin, tls))
    imgkeep = await start(platform=platform, fetch={"allow_networks": []})
    seen = await look(imgkeep, "https://example.com/a.png")
    assert (seen.status, seen.code, tls.seen) == (502, "origin_error", [])


async def test_good_certificate_is_accepted(
    start: StartImgkeep, origin: FakeOrigin, secure: Callable[[ssl.SSLContext], Awaitable[FakeOrigin]]
) -> None:
    tls = await secure(server_context("example.com"))
    platform = Platform(
        resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin, tls), ssl_context=client_context()
    )
    imgkeep = await start(platform=platform, fetch={"allow_networks": []})
    seen = await look(imgkeep, "https://example.com/a.png")
    assert (seen.status, seen.body) == (200, make_image())


async def test_https_to_a_port_without_tls_fails(start: StartImgkeep, origin: FakeOrigin) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    plain = FakeOrigin()
    plain.server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    platform = Platform(resolver=lambda: Names(default=[PUBLIC]), open_socket=Dials(origin, plain))
    imgkeep = await start(platform=platform, fetch={"allow_networks": []})
    seen = await look(imgkeep, "https://example.com/a.png")
    assert (seen.status, seen.code) == (502, "origin_error")
    await plain.stop()


@pytest.mark.parametrize("answer", [NO_SUCH_NAME, SERVER_FAILURE, []], ids=["NXDOMAIN", "SERVFAIL", "no address"])
async def test_unresolvable_name_is_an_origin_error(
    start: StartImgkeep, origin: FakeOrigin, answer: Addresses | OSError
) -> None:
    dials = Dials(origin)
    platform = Platform(resolver=lambda: Names({"example.com": answer}), open_socket=dials)
    imgkeep = await start(platform=platform, fetch={"allow_networks": []})
    seen = await look(imgkeep, "http://example.com/a.png")
    assert (seen.status, seen.code, dials.made) == (502, "origin_error", [])
    await nothing_kept(imgkeep)


async def test_retry_resolves_the_name_again(start: StartImgkeep, origin: FakeOrigin) -> None:
    names = Names()
    origin.gives("/a.png", make_image())

    async def answer() -> Addresses:
        if len(names.asked) == 1:
            raise SERVER_FAILURE
        return [PUBLIC]

    names.answers = {"example.com": answer}
    platform = Platform(resolver=lambda: names, open_socket=Dials(origin))
    imgkeep = await start(platform=platform, fetch={"allow_networks": [], "retries_max": 1})
    assert (await look(imgkeep, "http://example.com/a.png")).status == 200


async def test_slow_resolver_delays_no_other_fetch(start: StartImgkeep, origin: FakeOrigin) -> None:
    asked = asyncio.Event()

    async def answer() -> Addresses:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    origin.gives("/a.png", make_image())
    dials = Dials(origin)
    platform = Platform(resolver=lambda: Names({"slow.example.com": answer}, default=[PUBLIC]), open_socket=dials)
    imgkeep = await start(platform=platform, fetch={"allow_networks": [], "connect_timeout_s": 0.4})
    asking = asyncio.create_task(look(imgkeep, "http://slow.example.com:8080/a.png"))
    await asked.wait()
    assert (await look(imgkeep, "http://quick.example.com:8080/a.png")).status == 200
    seen = await asyncio.wait_for(asking, 15)
    assert (seen.status, seen.code) == (504, "origin_timeout")
    assert len(dials.made) == 1


class Rebinding:
    """A name that is public for its first `times` answers and inside from then on."""

    def __init__(self, times: int = 1) -> None:
        self.times = times

    async def __call__(self) -> Addresses:
        self.times -= 1
        return [PUBLIC] if self.times >= 0 else ["127.0.0.1"]


async def test_rebound_name_is_refused(start: StartImgkeep, origin: FakeOrigin) -> None:
    names = Names({"example.com": Rebinding()})
    dials = Dials(origin)
    imgkeep = await start(platform=Platform(resolver=lambda: names, open_socket=dials), fetch={"allow_networks": []})
    origin.gives("/1.png", make_image())
    origin.gives("/2.png", make_image(), headers={"Connection": "close"})
    # Over one connection, to the address that was judged.
    for path in ("/1.png", "/2.png"):
        assert (await look(imgkeep, f"http://example.com:8080{path}")).status == 200
    assert (names.asked, len(dials.made)) == (["example.com"], 1)
    # The cached answer runs out.
    forget_names(imgkeep.client.app[SERVICES].image_service._dependencies.origin)
    seen = await look(imgkeep, "http://example.com:8080/3.png")
    assert (seen.status, seen.code) == (403, "source_forbidden")
    assert dials.made == [(PUBLIC, 8080)]


async def test_redirect_to_a_rebound_name_is_refused(start: StartImgkeep, origin: FakeOrigin) -> None:
    names = Names({"example.com": Rebinding()})
    dials = Dials(origin)
    imgkeep = await start(platform=Platform(resolver=lambda: names, open_socket=dials), fetch={"allow_networks": []})
    origin.gives("/1.png", b"", status="302 Found", headers={"Location": "http://example.com:80/2.png"})
    seen = await look(imgkeep, "http://example.com:8080/1.png")
    assert (seen.status, seen.code) == (403, "source_forbidden")
    assert (dials.made, names.asked) == ([(PUBLIC, 8080)], ["example.com"] * 2)


async def test_retry_is_judged_again(start: StartImgkeep, origin: FakeOrigin) -> None:
    names = Names({"example.com": Rebinding()})
    dials = Dials(origin)
    platform = Platform(resolver=lambda: names, open_socket=dials)
    imgkeep = await start(platform=platform, fetch={"allow_networks": [], "retries_max": 1})

    async def script(exchange: Exchange) -> None:
        forget_names(imgkeep.client.app[SERVICES].image_service._dependencies.origin)
        exchange.reset()

    origin.on("/1.png", script)
    seen = await look(imgkeep, "http://example.com:8080/1.png")
    assert (seen.status, seen.code, dials.made) == (403, "source_forbidden", [(PUBLIC, 8080)])


async def test_all_addresses_of_a_name_are_tried(start: StartImgkeep, origin: FakeOrigin) -> None:
    class OneIsDown(Dials):
        def __call__(self, info: Any) -> Any:
            if info[4][0] == PUBLIC:
                self.made.append((PUBLIC, 80))
                raise ConnectionRefusedError
            return super().__call__(info)

    dials = OneIsDown(origin)
    platform = Platform(resolver=lambda: Names(default=[PUBLIC, "93.184.215.15"]), open_socket=dials)
    imgkeep = await start(platform=platform, fetch={"allow_networks": []})
    origin.gives("/a.png", make_image())
    assert (await look(imgkeep, "http://example.com/a.png")).status == 200
    assert {address for address, _ in dials.made} == {PUBLIC, "93.184.215.15"}
