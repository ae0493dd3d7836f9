"""Links that are signed anew, have expired, or do not expire: what becomes of them, among fakes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from imgkeep.core.errors import OriginError, OriginRefused, SourceExpired, SourceNotFound
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity import identify
from imgkeep.core.records import Digest, Validator
from imgkeep.core.source_url import read_source
from imgkeep.images.context import RedirectToSource
from imgkeep.images.refresh import Rules
from imgkeep.origin.demand import NotModified

from tests.support.fakes import RemoteFill, World, whole
from tests.support.pictures import picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source, SourceInfo

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
"""The clock of the world of fakes."""
SIGNATURE = "08ceefc08f3fae29dfff8c7a79a964e1a5e76eda9ad06fc61fc48996415484e4"
PLAIN = "https://images.example/a.png"
HOSTS = Globs(("bucket.s3.us-west-2.amazonaws.com",))
OLD, NEW = picture(seed=1), picture(seed=2)
SEEN = Validator('"1"', None)


def signed(date: str, *, path: str = "a.png", key: str = "AKIA") -> str:
    """Return a link by AWS Signature Version 4 that holds for an hour from `date` on."""
    credential = f"{key}%2F{date[:8]}%2Fus-west-2%2Fs3%2Faws4_request"
    return (
        f"https://bucket.s3.us-west-2.amazonaws.com/{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}"
        f"&X-Amz-Date={date}&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={SIGNATURE}"
    )


EXPIRED = signed("20261121T090000Z")
FRESH = signed("20261122T093000Z")
FRESHER = signed("20261122T095900Z", key="AKIB")


def by_catalogue(source: Source) -> SourceInfo:
    return replace(identify(source, NOW), enforced=True, enforced_by_host=True, permission="Signature" in source.target)


def exactly(source: Source) -> SourceInfo:
    return identify(source, NOW, exact=True)


def world_of(rules: Rules | None = None, identify_by: Callable[[Source], SourceInfo] = by_catalogue) -> World:
    return World(identify=identify_by, rules=rules)


def answer(body: bytes, validator: Validator | None = SEEN) -> Callable[[], RemoteFill]:
    def make() -> RemoteFill:
        feed = whole(body)
        feed.validator = validator
        return feed

    return make


# A link that is signed anew


@pytest.mark.parametrize("later", [FRESHER, EXPIRED, PLAIN.replace("images.example", "bucket.s3.amazonaws.com")])
async def test_a_link_that_is_signed_anew_expired_or_bare_finds_the_picture(later: str) -> None:
    world = world_of()
    world.origin.gives(FRESH, OLD)
    assert await world.get(FRESH) == ("stored", OLD)
    assert await world.get(later) == ("hit", OLD)
    assert world.origin.asked == [FRESH]


async def test_another_object_of_the_same_bucket_is_another_picture() -> None:
    world = world_of()
    other = signed("20261122T093000Z", path="b.png")
    world.origin.gives(FRESH, OLD)
    world.origin.gives(other, NEW)
    assert await world.get(FRESH) == ("stored", OLD)
    assert await world.get(other) == ("stored", NEW)


async def test_by_the_exact_identity_a_link_that_is_signed_anew_is_another_picture() -> None:
    world = world_of(identify_by=exactly)
    world.origin.gives(FRESH, OLD)
    world.origin.gives(FRESHER, NEW)
    assert await world.get(FRESH) == ("stored", OLD)
    assert await world.get(FRESHER) == ("stored", NEW)
    assert await world.get(FRESH) == ("hit", OLD)


async def test_the_record_holds_what_the_link_told_and_not_its_signature() -> None:
    world = world_of()
    world.origin.gives(FRESH, answer(OLD))
    await world.get(FRESH)
    (record,) = world.store.records.values()
    assert record.identity == "//bucket.s3.amazonaws.com/a.png"
    assert record.temporary
    assert record.expires_at == datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
    assert record.validator == SEEN


# A link that has expired


@pytest.mark.parametrize("refusal", [OriginRefused("the origin says 403", origin_status=403), SourceNotFound("404")])
@pytest.mark.parametrize("url", [EXPIRED, FRESH])
async def test_a_signed_link_that_is_refused_has_expired(url: str, refusal: OriginError) -> None:
    world = world_of()
    world.origin.gives(url, refusal)
    with pytest.raises(SourceExpired) as caught:
        await world.ask(url)
    assert caught.value.origin_status == refusal.origin_status
    with pytest.raises(SourceExpired):
        await world.ask(url)
    assert world.origin.asked == [url], "and that is remembered"


@pytest.mark.parametrize("refusal", [OriginRefused("403", origin_status=403), SourceNotFound("404", origin_status=404)])
async def test_a_plain_link_that_is_refused_has_not_expired(refusal: OriginError) -> None:
    world = world_of()
    world.origin.gives(PLAIN, refusal)
    with pytest.raises(type(refusal)) as caught:
        await world.ask(PLAIN)
    assert type(caught.value) is type(refusal)


async def test_a_signed_link_whose_origin_fails_otherwise_has_not_expired() -> None:
    world = world_of()
    world.origin.gives(EXPIRED, OriginError("the origin says 500", origin_status=500))
    with pytest.raises(OriginError) as caught:
        await world.ask(EXPIRED)
    assert type(caught.value) is OriginError


# A link that does not expire


async def test_permanent_links_are_kept_too_unless_told_otherwise() -> None:
    world = world_of()
    world.origin.gives(PLAIN, OLD)
    assert await world.get(PLAIN) == ("stored", OLD)


async def test_clients_of_permanent_links_can_be_sent_there() -> None:
    world = world_of(Rules(redirect_permanent=True))
    world.origin.gives(FRESH, OLD)
    source = read_source(PLAIN)
    assert await world.image_service.deliver(source, by_catalogue(source)) == RedirectToSource(PLAIN)
    assert await world.get(FRESH) == ("stored", OLD)
    assert world.origin.asked == [FRESH]


async def test_a_permanent_link_to_a_kept_picture_is_served() -> None:
    world = world_of(Rules(redirect_permanent=True))
    world.origin.gives(FRESH, OLD)
    await world.get(FRESH)
    assert await world.get("https://bucket.s3.amazonaws.com/a.png") == ("hit", OLD)


# Looking whether a picture changed


async def kept(world: World, validator: Validator | None = SEEN) -> None:
    world.origin.gives(FRESH, answer(OLD, validator))
    assert await world.get(FRESH) == ("stored", OLD)
    await world.image_service.drain()


async def test_a_new_signature_reveals_a_new_picture_to_those_who_ask_afterwards() -> None:
    world = world_of(Rules(refresh=HOSTS))
    await kept(world)
    world.origin.gives(FRESHER, answer(NEW, Validator('"2"', None)))
    assert await world.get(FRESHER) == ("hit", OLD), "nobody waits for the origin"
    await world.image_service.drain()
    assert world.origin.conditions == [None, SEEN]
    assert await world.get(FRESH) == ("hit", NEW)


async def test_a_picture_that_did_not_change_costs_one_question_per_link() -> None:
    world = world_of(Rules(refresh=HOSTS))
    await kept(world)
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
        pytest.param(lambda: RemoteFill().push(NEW[:-20]).end(OriginError("broke off")), id="cut"),
        pytest.param(lambda: RemoteFill(framed=False).push(NEW[:-20]).end(), id="cut where nothing tells"),
    ],
)
async def test_nothing_but_a_whole_image_replaces_what_is_kept(answers: Callable[[], RemoteFill] | Exception) -> None:
    world = world_of(Rules(refresh=HOSTS))
    await kept(world)
    world.origin.gives(FRESHER, answers)
    for _ in range(2):
        assert await world.get(FRESHER) == ("hit", OLD)
        await world.image_service.drain()
    assert world.origin.asked == [FRESH, FRESHER]


async def test_the_same_bytes_keep_their_tag() -> None:
    world = world_of(Rules(refresh=HOSTS))
    await kept(world)
    (before,) = world.store.records.values()
    world.origin.gives(FRESHER, answer(OLD, Validator('"2"', None)))
    await world.get(FRESHER)
    await world.image_service.drain()
    (after,) = world.store.records.values()
    assert (after.etag, after.validator) == (before.etag, Validator('"2"', None))


async def test_a_signature_that_may_be_unchecked_replaces_nothing() -> None:
    def unchecked(source: Source) -> SourceInfo:
        return replace(by_catalogue(source), enforced=source.url != FRESHER)

    world = world_of(Rules(refresh=HOSTS), unchecked)
    await kept(world)
    world.origin.gives(FRESHER, answer(NEW, Validator('"2"', None)))
    assert await world.get(FRESHER) == ("hit", OLD)
    await world.image_service.drain()
    assert world.origin.asked == [FRESH]


async def test_a_newer_picture_that_was_removed_changes_nothing() -> None:
    world = world_of(Rules(refresh=HOSTS))
    await kept(world)
    world.refused.add(Digest(sha256(NEW).hexdigest()))
    world.origin.gives(FRESHER, answer(NEW, Validator('"2"', None)))
    for _ in range(2):
        assert await world.get(FRESHER) == ("hit", OLD)
        await world.image_service.drain()
    assert await world.get(FRESH) == ("hit", OLD)
    assert world.store.tombstones == []


@pytest.mark.parametrize(
    ("rules", "validator", "url", "from_own_node"),
    [
        pytest.param(Rules(refresh=Globs(("other.example",))), SEEN, FRESHER, False, id="another host"),
        pytest.param(Rules(), SEEN, FRESHER, False, id="nobody wants it"),
        pytest.param(Rules(refresh=HOSTS), None, FRESHER, False, id="no validator"),
        pytest.param(Rules(refresh=HOSTS), SEEN, EXPIRED, False, id="expired"),
        pytest.param(Rules(refresh=HOSTS), SEEN, "https://bucket.s3.amazonaws.com/a.png", False, id="no signature"),
        pytest.param(Rules(refresh=HOSTS), SEEN, FRESHER, True, id="a node of ours asks"),
    ],
)
async def test_otherwise_no_origin_is_asked(
    rules: Rules, validator: Validator | None, url: str, *, from_own_node: bool
) -> None:
    world = world_of(rules)
    await kept(world, validator)
    delivery = await world.ask(url, from_own_node=from_own_node)
    await delivery.body.aclose()
    await world.image_service.drain()
    assert delivery.outcome.value == "hit"
    assert world.origin.asked == [FRESH]
