"""
Attempts of strangers to decide with a link of their own what other links of a key show: by its form, by equal bytes, by
being first, and on another node.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pytest

from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity import BUILT_IN, identify, read_provider_rules
from imgkeep.core.records import Validator
from imgkeep.core.source_url import read_source
from imgkeep.images.background_refresh import SourceRules
from tests.support.fakes import FakeResponse, World, read_all, whole
from tests.support.images import make_image
from tests.support.signed_links import (
    ENFORCED,
    FAR,
    FOREVER,
    IMAGE,
    PAST,
    PLACEHOLDER,
    UNCERTAIN,
    SignedOrigin,
    good,
    invented,
    shaped,
    show,
    sign,
    strict,
)
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.records import Key, Record
    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

LOOSE: Final = {
    "name": "Loose",
    "hosts": ["127.0.0.1"],
    "signed_by": {"loose_sig": "signature", "loose_end": "epoch"},
    "expires": ["epoch loose_end"],
}
SOURCES: dict[str, Any] = {"providers": [UNCERTAIN, ENFORCED, LOOSE]}
RULES: Final = read_provider_rules([UNCERTAIN, ENFORCED], BUILT_IN)
NOW: Final = datetime(2026, 11, 22, 10, tzinfo=UTC)
"""The time of the fakes' clock."""


@pytest.fixture
async def imgkeep(start: Start) -> Imgkeep:
    return await start(sources=SOURCES)


@pytest.fixture
def signed(origin: FakeOrigin) -> SignedOrigin:
    return SignedOrigin(origin)


# The form of a link


@pytest.mark.parametrize(
    "form",
    [f"?acme_end={FAR}&acme_sig={sign('mixed')[:-9]}aBcDeFaB0", f"?loose_end={FAR}&loose_sig=all-short-runs-here"],
    ids=["digits of both cases", "no signature to alter"],
)
async def test_no_form_of_signature_splits_a_key(imgkeep: Imgkeep, signed: SignedOrigin, form: str) -> None:
    """Once a key is split, its ended and refused links show nothing."""
    await show(imgkeep, signed.url(good()))
    assert (await show(imgkeep, signed.url(form))).body == PLACEHOLDER
    shown = await show(imgkeep, signed.url(good(5, end=PAST)))
    assert (shown.body, shown.status, shown.outcome) == (IMAGE, 200, "hit")
    await show(imgkeep, signed.url(good(1)))
    assert (await show(imgkeep, signed.url(good(2)))).caching == FOREVER


# Links that agree


def world_of(shown: dict[str, bytes], *, refresh: bool = False) -> World:
    """Return an image service before an https origin, with the image for each query."""
    rules = SourceRules(refresh=Globs(("img.example.com",))) if refresh else None
    world = World(
        identify=lambda source: identify(source, NOW, RULES),
        rules=rules,
    )
    for query, body in shown.items():
        world.origin.gives(f"https://img.example.com/a.png{query}", partial(changed, body))
    return world


def changed(body: bytes) -> FakeResponse:
    feed = whole(body)
    feed.validator = Validator(f'"{sha256(body).hexdigest()}"', None)
    return feed


async def seen(world: World, query: str) -> tuple[str, bytes, bool]:
    """Return outcome, bytes, and whether they are immutable, once nothing runs any more."""
    delivery = await world.ask(f"https://img.example.com/a.png{query}")
    body = await read_all(delivery)
    await world.image_service.drain()
    return delivery.cache_status.value, body, delivery.immutable


def fresh(number: int) -> str:
    """Return the query of a link of the provider that is known to check, which has not ended."""
    return strict(end=FAR + number)


def over() -> str:
    """Return the query of a link in the shape of Amazon's that has ended."""
    return f"{shaped(5)}&X-Amz-Date=20200101T000000Z&X-Amz-Expires=3600"


async def test_no_shape_of_signature_replaces_image_of_bare_link() -> None:
    world = world_of({"": IMAGE, shaped(): IMAGE, shaped(1): PLACEHOLDER})
    assert (await seen(world, "")) == ("stored", IMAGE, True)
    assert (await seen(world, shaped())) == ("stored", IMAGE, True)
    for _ in range(2):
        assert (await seen(world, "")) == ("hit", IMAGE, True), "immutable, as before"
        assert (await seen(world, shaped(1))) == ("hit", IMAGE, True)
    assert len(world.origin.asked) == 2
    world.restart()
    assert (await seen(world, "")) == ("hit", IMAGE, True)
    assert len(world.origin.asked) == 2


async def test_refresh_keeps_facts_of_other_links() -> None:
    """A link goes on showing its image, whichever other image is replaced."""
    theirs, newer = make_image(seed=7), make_image(seed=8)
    world = world_of({fresh(0): IMAGE, good(): theirs, fresh(1): newer}, refresh=True)
    assert (await seen(world, good()))[1] == theirs
    assert (await seen(world, fresh(0)))[1] == IMAGE
    await seen(world, fresh(1))
    await world.image_service.drain()
    assert (await seen(world, fresh(2)))[1] == newer, "the operator wants it"
    assert (await seen(world, good()))[:2] == ("hit", theirs)


async def test_shape_of_checked_scheme_refreshes_nothing() -> None:
    """A stranger's link refreshes nothing, even at hosts with `sources.refresh`."""
    world = world_of({living(0): IMAGE, living(1): PLACEHOLDER}, refresh=True)
    await seen(world, living(0))
    await seen(world, living(1))
    await world.image_service.drain()
    assert (await seen(world, living(1)))[:2] == ("hit", IMAGE)
    assert len(world.origin.asked) == 1


def living(number: int) -> str:
    """Return the query of a link in the shape of Amazon's that has not ended."""
    return f"{shaped(number)}&X-Amz-Date=20261122T093000Z&X-Amz-Expires=360{number}"


async def test_shape_replaces_nothing_of_ended_link() -> None:
    world = world_of({over(): IMAGE, shaped(): PLACEHOLDER})
    assert (await seen(world, over()))[1] == IMAGE
    await seen(world, shaped())
    assert (await seen(world, over()))[:2] == ("hit", IMAGE)


def test_proxied_link_has_trust_of_link_inside() -> None:
    """A proxy that sends no errors as images may fetch from hosts that do, by invented signatures."""
    proxy = {"name": "Proxy", "hosts": ["p.example"], "keep": ["url"], "nested": "url", "enforced": True}
    provider_rules = read_provider_rules([proxy, {**ENFORCED, "hosts": ["img.example.com"]}], BUILT_IN)
    for query, known in ((shaped(), False), (strict(), True)):
        inner = quote(f"https://img.example.com/a.png{query}", safe="")
        info = identify(read_source(f"https://p.example/?url={inner}"), NOW, provider_rules)
        assert (info.permission, info.enforced, info.enforced_by_host) == (True, True, known)


# Concurrent links


async def test_save_stores_image_of_its_own_link(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    """What a stranger's link brings during a save must not count as saved."""
    gate, began = asyncio.Event(), asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        if exchange.target.endswith(invented()):
            began.set()
            await gate.wait()
        await signed._answer(exchange)

    signed.origin.on(signed.path, hold)
    stranger = asyncio.create_task(show(imgkeep, signed.url(invented())))
    await began.wait()
    assert imgkeep.client.app is not None
    image_service = imgkeep.client.app[SERVICES].image_service
    fill = image_service._fills.running.find(image_service.keys_of(read_source(signed.url(good())))[0])
    assert fill is not None
    saving = asyncio.create_task(imgkeep.client.post("/api/save-image", json={"url": signed.url(good())}))
    await until(lambda: fill.body._holders >= 3)
    gate.set()
    assert (await stranger).body == PLACEHOLDER
    saved = await (await saving).json()
    assert (saved["digest"], saved["created"]) == (sha256(IMAGE).hexdigest(), True)
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE


# Another node


async def test_node_learns_doubts_that_other_node_found() -> None:
    """A record in memory does not tell what links of other kinds have shown."""
    one, other = world_of({"": PLACEHOLDER, good(): IMAGE}), world_of({"": PLACEHOLDER})
    other.store = one.store
    other.restart()
    for world in (one, other):
        assert (await seen(world, ""))[1] == PLACEHOLDER
    assert (await seen(one, good()))[1] == IMAGE
    for _ in range(2):
        assert (await seen(other, good()))[:2] == ("hit", IMAGE), "although the origin refuses this link by now"
    assert len(other.origin.asked) == 0


async def test_store_is_asked_once_for_many_doubtful_links() -> None:
    world = world_of({"": PLACEHOLDER})
    await seen(world, "")
    looks = 0
    find = world.store.find

    async def count(key: Key) -> Record | None:
        nonlocal looks
        looks += key == shared
        return await find(key)

    shared = world.image_service.keys_of(read_source("https://img.example.com/a.png"))[0]
    world.store.find = count  # type: ignore[method-assign]
    for number in range(9):
        assert (await seen(world, good(number, end=PAST)))[1] == PLACEHOLDER
    assert looks == 1
