"""
Strangers who write links with invented signatures: at an origin that answers these with an image, they must not decide
what other links show, what is stored for good, or what is removed.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.images import make_image
from tests.support.network import counted
from tests.support.signed_links import (
    BRIEF,
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
    strict,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

SOURCES: dict[str, Any] = {"providers": [UNCERTAIN, ENFORCED]}


@pytest.fixture
async def imgkeep(start: Start) -> Imgkeep:
    return await start(sources=SOURCES)


@pytest.fixture
def signed(origin: FakeOrigin) -> SignedOrigin:
    return SignedOrigin(origin)


# What an invented link brings


async def test_invented_link_stores_nothing_for_good(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    first = await show(imgkeep, signed.url(invented()))
    assert (first.body, first.caching) == (PLACEHOLDER, BRIEF)
    again = await show(imgkeep, signed.url(invented()))
    assert (again.body, again.caching, again.outcome) == (PLACEHOLDER, BRIEF, "hit")
    assert len(signed.asked) == 1


async def test_good_link_shows_its_image_after_invented_one(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(invented()))
    shown = await show(imgkeep, signed.url(good()))
    assert (shown.body, shown.caching) == (IMAGE, BRIEF)
    for _ in range(3):
        shown = await show(imgkeep, signed.url(good()))
        assert (shown.body, shown.outcome) == (IMAGE, "hit")


@pytest.mark.parametrize("first", ["shaped", "good"])
async def test_shape_of_checked_scheme_stands_for_its_kind_alone(
    imgkeep: Imgkeep, signed: SignedOrigin, first: str
) -> None:
    """A stranger can write the shape of a checked signature for a host that ignores it."""
    links = [signed.url(shaped()), signed.url(good())]
    for url in links if first == "shaped" else reversed(links):
        await show(imgkeep, url)
    for number in range(2):
        shown = await show(imgkeep, signed.url(good(number)))
        assert (shown.body, shown.status) == (IMAGE, 200)
    assert (await show(imgkeep, signed.url(good(2, end=PAST)))).body == IMAGE, "it replaces the image of no good link"


async def test_placeholder_is_replaced_once_altered_signature_brings_it(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(invented()))
    await show(imgkeep, signed.url(good()))
    # One fetch for each link, two by altered signatures, and one by the genuine link again.
    assert len(signed.asked) == 5
    assert await counted(imgkeep, 'imgkeep_confirmations_total{outcome="placeholder"}') == 1
    ended = await show(imgkeep, signed.url(good(1, end=PAST)))
    assert (ended.body, ended.outcome) == (IMAGE, "hit"), "an ended link shows the image of the good one"
    assert len(signed.asked) == 5
    assert (await show(imgkeep, signed.url(invented()))).body == PLACEHOLDER, "and the link goes on showing its own"


async def test_two_good_links_confirm_image(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good(0)))
    second = await show(imgkeep, signed.url(good(1)))
    assert (second.body, second.outcome) == (IMAGE, "fwd=uri-miss; stored")
    assert len(signed.asked) == 5
    for query in (good(0), good(1), good(2), invented(5), good(3, end=PAST), ""):
        shown = await show(imgkeep, signed.url(query))
        assert (shown.body, shown.caching, shown.outcome) == (IMAGE, FOREVER, "hit")
    assert len(signed.asked) == 5
    assert await counted(imgkeep, 'imgkeep_confirmations_total{outcome="difference"}') == 1


async def test_refused_altered_signature_confirms_image(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    signed.placeholder = None
    await show(imgkeep, signed.url(good(0)))
    await show(imgkeep, signed.url(good(1)))
    assert len(signed.asked) == 4
    assert (await show(imgkeep, signed.url(good(2)))).caching == FOREVER
    assert len(signed.asked) == 4


async def test_invented_links_cannot_confirm_placeholder(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    for number in range(5):
        shown = await show(imgkeep, signed.url(invented(number)))
        assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    # A fill each, and one altered signature, whose answer ends the probes for some minutes.
    assert len(signed.asked) == 6
    shown = await show(imgkeep, signed.url(good()))
    assert shown.body == IMAGE
    assert (await show(imgkeep, signed.url(good(1)))).body == IMAGE
    assert (await show(imgkeep, signed.url(good(2)))).caching == FOREVER


async def test_invented_link_changes_nothing_for_good_one(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good()))
    for number in range(3):
        shown = await show(imgkeep, signed.url(invented(number)))
        assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    for query in (good(), good(7, end=PAST)):
        assert (await show(imgkeep, signed.url(query))).body == IMAGE
    assert len(imgkeep.files("objects")) == 2, "nothing that was stored is lost"


async def test_placeholder_of_bare_link_changes_nothing(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    assert (await show(imgkeep, signed.url())).caching == FOREVER, "the bare link has no other image"
    shown = await show(imgkeep, signed.url(good()))
    assert (shown.body, shown.caching) == (IMAGE, BRIEF)
    assert (await show(imgkeep, signed.url(good(1)))).body == IMAGE
    shown = await show(imgkeep, signed.url(good(2)))
    assert (shown.body, shown.caching) == (IMAGE, FOREVER)


async def test_later_placeholder_of_bare_link_replaces_nothing(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good()))
    assert (await show(imgkeep, signed.url())).body == PLACEHOLDER
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE
    assert (await show(imgkeep, signed.url(good(1)))).body == IMAGE
    assert (await show(imgkeep, signed.url(good(2, end=PAST)))).body == IMAGE


# Links that have ended


async def test_image_of_ended_link_is_replaced(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    ended = await show(imgkeep, signed.url(good(0, end=PAST)))
    assert (ended.body, ended.caching) == (PLACEHOLDER, BRIEF)
    for number in range(3):
        shown = await show(imgkeep, signed.url(invented(number, end=PAST)))
        assert (shown.body, shown.caching, shown.outcome) == (PLACEHOLDER, BRIEF, "hit")
    assert len(signed.asked) == 1
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE
    assert (await show(imgkeep, signed.url(invented(9, end=PAST)))).body == IMAGE


async def test_ended_link_shows_stored_image_without_fetch(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good()))
    shown = await show(imgkeep, signed.url(good(1, end=PAST)))
    assert (shown.body, shown.caching, shown.outcome) == (IMAGE, BRIEF, "hit")
    assert len(signed.asked) == 1


async def test_refused_link_shows_stored_image(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    signed.placeholder = None
    await show(imgkeep, signed.url(good()))
    for _ in range(3):
        shown = await show(imgkeep, signed.url(invented()))
        assert (shown.body, shown.caching, shown.outcome, shown.status) == (IMAGE, BRIEF, "hit", 200)
    assert len(signed.asked) == 2, "and the negative cache holds it"


# Verified links


async def test_verified_link_replaces_placeholder(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(invented()))
    shown = await show(imgkeep, signed.url(strict()))
    assert (shown.body, shown.caching) == (IMAGE, FOREVER)
    for query in (strict(), good(4), invented(4), strict(end=PAST)):
        shown = await show(imgkeep, signed.url(query))
        assert (shown.body, shown.caching, shown.outcome) == (IMAGE, FOREVER, "hit")
    assert len(signed.asked) == 2
    name = f"/images/{sha256(PLACEHOLDER).hexdigest()}.png"
    assert await (await imgkeep.client.get(name)).read() == PLACEHOLDER, "the placeholder stays under its permanent URL"


async def test_equal_bytes_of_verified_link_keep_etag(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good()))
    before = (await imgkeep.img(signed.url(good()))).headers["ETag"]
    await show(imgkeep, signed.url(strict()))
    assert (await imgkeep.img(signed.url(good()))).headers["ETag"] == before
    assert (await show(imgkeep, signed.url(good()))).caching == FOREVER


# Origins that check nothing, or send an image of its own for each signature


async def test_unchecking_origin_is_asked_once_by_each_link(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    signed.checks = False
    for _ in range(2):
        for number in range(4):
            shown = await show(imgkeep, signed.url(invented(number)))
            assert (shown.body, shown.caching) == (IMAGE, BRIEF)
    assert len(signed.asked) == 5, "four links, and one altered signature"
    assert (await show(imgkeep, signed.url(good(end=PAST)))).outcome == "hit"
    assert len(imgkeep.files("objects")) == len(imgkeep.files("records")) == 1


@pytest.mark.parametrize("placeholder", [PLACEHOLDER, None], ids=["placeholder", "refusal"])
async def test_signatures_that_name_the_image_split_the_key(
    imgkeep: Imgkeep, signed: SignedOrigin, caplog: pytest.LogCaptureFixture, placeholder: bytes | None
) -> None:
    signed.placeholder = placeholder
    signed.images = {good(number): make_image(seed=10 + number) for number in range(4)}
    for _ in range(2):
        for query, body in signed.images.items():
            shown = await show(imgkeep, signed.url(query))
            assert (shown.body, shown.caching) == (body, BRIEF)
    told = [record for record in caplog.records if record.getMessage().startswith("key split")]
    assert len(told) == 1
    assert await counted(imgkeep, 'imgkeep_confirmations_total{outcome="split"}') == 1
    assert (await show(imgkeep, signed.url(good(5, end=PAST)))).body != signed.images[good()]
    (facts,) = [
        image
        for image in (await (await imgkeep.client.get("/api/images")).json())["images"]
        if image["standing"] == "split"
    ]
    assert facts["doubts"] == ["signature", "plaintext", "contested", "split"]


async def test_records_hold_no_signature(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    for query in (invented(), good(0), good(1)):
        await show(imgkeep, signed.url(query))
    texts = [path.read_text("utf-8") for path in imgkeep.files("records")]
    assert len(texts) > 1
    assert not any("acme_sig" in text or "acme_end" in text for text in texts)


# Probes


@pytest.mark.parametrize("failing", ["500 Internal Server Error", "429 Too Many Requests", "503 Service Unavailable"])
async def test_unstable_origin_proves_nothing(imgkeep: Imgkeep, signed: SignedOrigin, failing: str) -> None:
    await show(imgkeep, signed.url(good(0)))
    signed.failing = failing
    shown = await show(imgkeep, signed.url(good(1)))
    assert (shown.body, (await show(imgkeep, signed.url(good(0)))).caching) == (IMAGE, BRIEF)
    assert len(signed.asked) == 3


async def test_origin_that_refuses_all_proves_nothing(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    """Else a stranger who has this server banned by an origin would confirm a placeholder."""
    await show(imgkeep, signed.url(invented(0)))
    answer, answered = signed._answer, 0

    async def ban(exchange: Any) -> None:
        nonlocal answered
        answered += 1
        if answered > 1:
            await exchange.answer(b"go away", status="403 Forbidden")
        else:
            await answer(exchange)

    signed.origin.on(signed.path, ban)
    await show(imgkeep, signed.url(invented(1)))
    assert answered == 3, "the link, the altered one, and the link again"
    assert (await show(imgkeep, signed.url(invented(0)))).caching == BRIEF


async def test_probes_alter_the_signature_alone(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good(0)))
    await show(imgkeep, signed.url(good(1)))
    spoiled = [query for query in signed.asked if f"?{query}" not in {good(0), good(1)}]
    assert len(set(spoiled)) == 2
    for query in spoiled:
        assert query.startswith(good(1)[1:-9])
        assert len(query) == len(good(1)) - 1
        assert all(old != new for old, new in zip(good(1)[-9:-1], query[-9:-1], strict=True))


# Removal


async def test_blocked_placeholder_blocks_no_key(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    digest = sha256(PLACEHOLDER).hexdigest()
    removal = {"digest": digest, "force": "true"}
    assert (await imgkeep.client.delete("/api/images", params=removal)).status == 200
    for number in range(3):
        response = await imgkeep.client.post("/api/save-image", json={"url": signed.url(invented(number))})
        assert (response.status, (await response.json())["code"]) == (410, "removed")
    assert len(signed.asked) == 3
    assert (await imgkeep.img(signed.url(invented(0)))).status == 410
    assert len(signed.asked) == 3, "the negative cache holds the link"
    assert imgkeep.files("records") == []
    shown = await show(imgkeep, signed.url(good()))
    assert (shown.body, shown.status) == (IMAGE, 200)


async def test_stored_image_survives_link_with_blocked_bytes(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good()))
    removal = {"digest": sha256(PLACEHOLDER).hexdigest(), "force": "true"}
    assert (await imgkeep.client.delete("/api/images", params=removal)).status == 200
    await imgkeep.client.post("/api/save-image", json={"url": signed.url(invented())})
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE
    assert (await show(imgkeep, signed.url(good(1)))).body == IMAGE


@pytest.mark.parametrize("way", ["src", "digest"])
async def test_removed_placeholder_blocks_no_good_link(imgkeep: Imgkeep, signed: SignedOrigin, way: str) -> None:
    await show(imgkeep, signed.url(invented()))
    named = signed.url(invented()) if way == "src" else sha256(PLACEHOLDER).hexdigest()
    assert (await imgkeep.client.delete("/api/images", params={way: named})).status == 200
    assert (await imgkeep.img(signed.url(invented()))).status == 410
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE
    assert (await show(imgkeep, signed.url(good(1)))).body == IMAGE
    tombstones = [path for path in imgkeep.files("records") if b"removed_at" in path.read_bytes()]
    assert tombstones == []


async def test_removal_by_link_removes_only_its_image(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    signed.images = {good(1): make_image(seed=7)}
    await show(imgkeep, signed.url(good()))
    assert (await show(imgkeep, signed.url(good(1)))).body == make_image(seed=7)
    assert (await imgkeep.client.delete("/api/images", params={"src": signed.url(good(1))})).status == 200
    assert (await imgkeep.img(signed.url(good(1)))).status == 410
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE
    response = await imgkeep.client.post("/api/restore", json={"url": signed.url(good(1))})
    assert (response.status, (await response.json())["digest"]) == (200, sha256(make_image(seed=7)).hexdigest())
    assert (await show(imgkeep, signed.url(good(1)))).body == make_image(seed=7)


async def test_refetch_by_good_link_removes_doubts(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(invented()))
    listed = (await (await imgkeep.client.get("/api/images")).json())["images"]
    response = await imgkeep.client.post(f"/api/images/{listed[0]['key']}/refetch", json={"url": signed.url(good())})
    told = await response.json()
    assert (response.status, told["replaced"], told["digest"]) == (200, True, sha256(IMAGE).hexdigest())
    for number in range(2):
        assert (await show(imgkeep, signed.url(good(number)))).outcome == "hit"


# Other requests


async def test_save_makes_second_fill_like_request(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    async def save(query: str) -> dict[str, Any]:
        response = await imgkeep.client.post("/api/save-image", json={"url": signed.url(query)})
        told = await response.json()
        assert isinstance(told, dict)
        return told

    placeholder = await save(invented())
    assert (placeholder["standing"], placeholder["doubts"]) == ("provisional", ["signature", "plaintext"])
    saved = await save(good())
    assert (saved["digest"], saved["created"]) == (sha256(IMAGE).hexdigest(), True)
    assert (await show(imgkeep, signed.url(good()))).body == IMAGE
    assert (await save(good()))["created"] is False


async def test_doubts_survive_restart(start: Start, signed: SignedOrigin) -> None:
    first = await start(sources=SOURCES)
    await show(first, signed.url(invented()))
    await show(first, signed.url(good()))
    await first.client.close()
    second = await start(sources=SOURCES, folder=first.folder)
    asked = len(signed.asked)
    assert (await show(second, signed.url(good()))).body == IMAGE
    assert (await show(second, signed.url(invented()))).body == PLACEHOLDER
    assert (await show(second, signed.url(good(1, end=PAST)))).body == IMAGE
    assert len(signed.asked) == asked


async def test_refused_second_fill_shows_stored_image(start: Start, signed: SignedOrigin) -> None:
    imgkeep = await start(sources=SOURCES, limits={"fills_per_minute": 1}, server={"trusted_proxies": ["127.0.0.1"]})
    headers = {"X-Forwarded-For": "203.0.113.9"}
    assert await (await imgkeep.img(signed.url(good()), headers=headers)).read() == IMAGE
    for number in range(3):
        response = await imgkeep.img(signed.url(invented(number)), headers=headers)
        assert (response.status, await response.read()) == (200, IMAGE)
        assert response.headers["Cache-Control"] == BRIEF
    assert len(signed.asked) == 1


async def test_client_without_fills_is_shown_stored_image(start: Start, signed: SignedOrigin) -> None:
    imgkeep = await start(sources=SOURCES, security={"signature": "misses", "signing_keys": ["k" * 32]})
    response = await imgkeep.client.post("/api/save-image", json={"url": signed.url(good())})
    assert response.status == 201
    shown = await show(imgkeep, signed.url(invented()))
    assert (shown.body, shown.status) == (IMAGE, 200)
    assert len(signed.asked) == 1


async def test_cached_response_serves_only_links_it_stands_for(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good(0)))
    for _ in range(3):
        assert (await show(imgkeep, signed.url(good(0)))).caching == BRIEF
    await show(imgkeep, signed.url(good(1)))
    assert len(signed.asked) == 5, "another link makes a second fill"
    for _ in range(3):
        assert (await show(imgkeep, signed.url(good(0)))).caching == FOREVER, "and the response cache is invalidated"


async def test_second_fill_restores_lost_image(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    await show(imgkeep, signed.url(good(0)))
    (lost,) = imgkeep.files("objects")
    lost.unlink()
    assert (await show(imgkeep, signed.url(good(1)))).body == IMAGE
    assert imgkeep.files("objects") == [lost]


async def test_redirected_permanent_links_make_no_second_fill(start: Start, signed: SignedOrigin) -> None:
    imgkeep = await start(sources={**SOURCES, "permanent": "redirect"})
    await show(imgkeep, signed.url(good()))
    assert (await show(imgkeep, signed.url())).body == IMAGE
    assert len(signed.asked) == 1


async def test_ended_verified_link_is_one_more_ended_link(imgkeep: Imgkeep, signed: SignedOrigin) -> None:
    shown = await show(imgkeep, signed.url(strict(end=PAST)))
    assert (shown.body, shown.caching) == (PLACEHOLDER, BRIEF)
    assert (await show(imgkeep, signed.url(strict(end=FAR)))).body == IMAGE
    assert (await show(imgkeep, signed.url(strict(end=PAST)))).caching == FOREVER
