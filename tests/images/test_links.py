"""Renewed, expired and permanent links, among fakes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import OriginError, OriginRefused, SourceExpired, SourceNotFound
from imgkeep.core.host_patterns import Globs
from imgkeep.core.records import Digest, Validator
from imgkeep.core.source_url import read_source
from imgkeep.images.background_refresh import SourceRules
from imgkeep.images.request_context import RedirectToSource
from imgkeep.origin.demand import NotModified
from tests.support.fakes import FakeResponse, World, whole
from tests.support.images import make_image
from tests.support.temporary_links import (
    EXPIRED,
    FRESH,
    FRESHER,
    PLAIN,
    by_provider_rules,
    exactly,
    signed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source, SourceInfo

HOSTS = Globs(("bucket.s3.us-west-2.amazonaws.com",))
OLD, NEW = make_image(seed=1), make_image(seed=2)
SEEN = Validator('"1"', None)


def world_of(
    rules: SourceRules | None = None, identify_by: Callable[[Source], SourceInfo] = by_provider_rules
) -> World:
    return World(identify=identify_by, rules=rules)


def answer(body: bytes, validator: Validator | None = SEEN) -> Callable[[], FakeResponse]:
    def make() -> FakeResponse:
        feed = whole(body)
        feed.validator = validator
        return feed

    return make


# Renewed links


@pytest.mark.parametrize("later", [FRESHER, EXPIRED, PLAIN.replace("images.example", "bucket.s3.amazonaws.com")])
async def test_renewed_expired_and_bare_links_find_the_image(later: str) -> None:
    world = world_of()
    world.origin.gives(FRESH, OLD)
    assert await world.get(FRESH) == ("stored", OLD)
    assert await world.get(later) == ("hit", OLD)
    assert world.origin.asked == [FRESH]


async def test_other_object_of_bucket_is_other_image() -> None:
    world = world_of()
    other = signed("20261122T093000Z", path="b.png")
    world.origin.gives(FRESH, OLD)
    world.origin.gives(other, NEW)
    assert await world.get(FRESH) == ("stored", OLD)
    assert await world.get(other) == ("stored", NEW)


async def test_exact_identity_makes_renewed_link_other_image() -> None:
    world = world_of(identify_by=exactly)
    world.origin.gives(FRESH, OLD)
    world.origin.gives(FRESHER, NEW)
    assert await world.get(FRESH) == ("stored", OLD)
    assert await world.get(FRESHER) == ("stored", NEW)
    assert await world.get(FRESH) == ("hit", OLD)


async def test_record_holds_facts_of_link_without_signature() -> None:
    world = world_of()
    world.origin.gives(FRESH, answer(OLD))
    await world.get(FRESH)
    (record,) = world.store.records.values()
    assert record.identity == "//bucket.s3.amazonaws.com/a.png"
    assert record.temporary
    assert record.expires_at == datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
    assert record.validator == SEEN


# Expired links


@pytest.mark.parametrize("refusal", [OriginRefused("the origin says 403", origin_status=403), SourceNotFound("404")])
@pytest.mark.parametrize("url", [EXPIRED, FRESH])
async def test_refused_signed_link_has_expired(url: str, refusal: OriginError) -> None:
    world = world_of()
    world.origin.gives(url, refusal)
    with pytest.raises(SourceExpired) as caught:
        await world.ask(url)
    assert caught.value.origin_status == refusal.origin_status
    with pytest.raises(SourceExpired):
        await world.ask(url)
    assert world.origin.asked == [url], "the negative cache holds the failure"


@pytest.mark.parametrize("refusal", [OriginRefused("403", origin_status=403), SourceNotFound("404", origin_status=404)])
async def test_refused_plain_link_has_not_expired(refusal: OriginError) -> None:
    world = world_of()
    world.origin.gives(PLAIN, refusal)
    with pytest.raises(type(refusal)) as caught:
        await world.ask(PLAIN)
    assert type(caught.value) is type(refusal)


async def test_signed_link_with_other_failure_has_not_expired() -> None:
    world = world_of()
    world.origin.gives(EXPIRED, OriginError("the origin says 500", origin_status=500))
    with pytest.raises(OriginError) as caught:
        await world.ask(EXPIRED)
    assert type(caught.value) is OriginError


# Permanent links


async def test_permanent_links_are_stored_by_default() -> None:
    world = world_of()
    world.origin.gives(PLAIN, OLD)
    assert await world.get(PLAIN) == ("stored", OLD)


async def test_permanent_links_can_be_redirected() -> None:
    world = world_of(SourceRules(redirect_permanent=True))
    world.origin.gives(FRESH, OLD)
    source = read_source(PLAIN)
    assert await world.image_service.deliver(source, by_provider_rules(source)) == RedirectToSource(PLAIN)
    assert await world.get(FRESH) == ("stored", OLD)
    assert world.origin.asked == [FRESH]


async def test_permanent_link_to_stored_image_is_served() -> None:
    world = world_of(SourceRules(redirect_permanent=True))
    world.origin.gives(FRESH, OLD)
    await world.get(FRESH)
    assert await world.get("https://bucket.s3.amazonaws.com/a.png") == ("hit", OLD)


# Refreshes


async def store_old(world: World, validator: Validator | None = SEEN) -> None:
    world.origin.gives(FRESH, answer(OLD, validator))
    assert await world.get(FRESH) == ("stored", OLD)
    await world.image_service.drain()


async def test_renewed_link_refreshes_the_image() -> None:
    world = world_of(SourceRules(refresh=HOSTS))
    await store_old(world)
    world.origin.gives(FRESHER, answer(NEW, Validator('"2"', None)))
    assert await world.get(FRESHER) == ("hit", OLD), "the client does not wait for the origin"
    await world.image_service.drain()
    assert world.origin.conditions == [None, SEEN]
    assert await world.get(FRESH) == ("hit", NEW)


async def test_unchanged_image_costs_one_request_per_link() -> None:
    world = world_of(SourceRules(refresh=HOSTS))
    await store_old(world)
    world.origin.gives(FRESHER, NotModified())
    for _ in range(3):
        assert await world.get(FRESHER) == ("hit", OLD)
        assert await world.get(FRESH) == ("hit", OLD)
        await world.image_service.drain()
    assert world.origin.asked == [FRESH, FRESHER]
    assert world.observer.unchanged_count == 1
    assert world.observer.errors == []


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(OriginRefused("403", origin_status=403), id="refused"),
        pytest.param(lambda: whole(b"<html>expired</html>"), id="no image"),
        pytest.param(lambda: FakeResponse().push(NEW[:-20]).end(OriginError("broke off")), id="cut"),
        pytest.param(lambda: FakeResponse(framed=False).push(NEW[:-20]).end(), id="cut, unframed"),
    ],
)
async def test_refresh_replaces_only_by_whole_image(answers: Callable[[], FakeResponse] | Exception) -> None:
    world = world_of(SourceRules(refresh=HOSTS))
    await store_old(world)
    world.origin.gives(FRESHER, answers)
    for _ in range(2):
        assert await world.get(FRESHER) == ("hit", OLD)
        await world.image_service.drain()
    assert world.origin.asked == [FRESH, FRESHER]


async def test_refresh_with_equal_bytes_keeps_etag() -> None:
    world = world_of(SourceRules(refresh=HOSTS))
    await store_old(world)
    (before,) = world.store.records.values()
    world.origin.gives(FRESHER, answer(OLD, Validator('"2"', None)))
    await world.get(FRESHER)
    await world.image_service.drain()
    (after,) = world.store.records.values()
    assert (after.etag, after.validator) == (before.etag, Validator('"2"', None))


async def test_unchecked_signature_refreshes_nothing() -> None:
    def unchecked(source: Source) -> SourceInfo:
        return replace(by_provider_rules(source), enforced=source.url != FRESHER)

    world = world_of(SourceRules(refresh=HOSTS), unchecked)
    await store_old(world)
    world.origin.gives(FRESHER, answer(NEW, Validator('"2"', None)))
    assert await world.get(FRESHER) == ("hit", OLD)
    await world.image_service.drain()
    assert world.origin.asked == [FRESH]


async def test_refresh_with_removed_image_changes_nothing() -> None:
    world = world_of(SourceRules(refresh=HOSTS))
    await store_old(world)
    world.blocked.add(Digest(sha256(NEW).hexdigest()))
    world.origin.gives(FRESHER, answer(NEW, Validator('"2"', None)))
    for _ in range(2):
        assert await world.get(FRESHER) == ("hit", OLD)
        await world.image_service.drain()
    assert await world.get(FRESH) == ("hit", OLD)
    assert world.store.tombstones == []


@pytest.mark.parametrize(
    ("rules", "validator", "url", "from_own_node"),
    [
        pytest.param(SourceRules(refresh=Globs(("other.example",))), SEEN, FRESHER, False, id="another host"),
        pytest.param(SourceRules(), SEEN, FRESHER, False, id="not configured"),
        pytest.param(SourceRules(refresh=HOSTS), None, FRESHER, False, id="no validator"),
        pytest.param(SourceRules(refresh=HOSTS), SEEN, EXPIRED, False, id="expired"),
        pytest.param(
            SourceRules(refresh=HOSTS), SEEN, "https://bucket.s3.amazonaws.com/a.png", False, id="no signature"
        ),
        pytest.param(SourceRules(refresh=HOSTS), SEEN, FRESHER, True, id="request of own node"),
    ],
)
async def test_no_refresh_without_reason(
    rules: SourceRules, validator: Validator | None, url: str, *, from_own_node: bool
) -> None:
    world = world_of(rules)
    await store_old(world, validator)
    delivery = await world.ask(url, from_own_node=from_own_node)
    await delivery.body.aclose()
    await world.image_service.drain()
    assert delivery.cache_status.value == "hit"
    assert world.origin.asked == [FRESH]
