"""One image under many names: placeholders that an origin sends for what is missing or forbidden."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from imgkeep.core.records import Digest
from imgkeep.images.placeholder_suspects import IDENTITIES_MIN, PERIOD_S, SUSPECTS_MAX, PlaceholderSuspects
from tests.support.network import Timer, counted
from tests.support.signed_links import IMAGE, PLACEHOLDER, UNCERTAIN, SignedOrigin, good, invented, show
from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

RECORD = record_of(PLACEHOLDER)


def give_many(origin: FakeOrigin, body: bytes, number: int = IDENTITIES_MIN) -> list[str]:
    return [origin.gives(f"/missing/{each}.png", body) for each in range(number)]


async def save(imgkeep: Imgkeep, url: str) -> tuple[int, dict[str, object]]:
    response = await imgkeep.client.post("/api/save-image", json={"url": url})
    return response.status, await response.json()


async def test_suspected_placeholder_is_reported_once(
    start: Start, origin: FakeOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    imgkeep = await start()
    urls = give_many(origin, PLACEHOLDER, IDENTITIES_MIN + 3)
    for url in urls[: IDENTITIES_MIN - 1]:
        assert (await save(imgkeep, url))[1]["suspect"] is False
    for url in urls[IDENTITIES_MIN - 1 :]:
        assert (await save(imgkeep, url))[1]["suspect"] is True
    reply = [record for record in caplog.records if record.getMessage().startswith("placeholder suspected")]
    assert [vars(record)["digest"] for record in reply] == [sha256(PLACEHOLDER).hexdigest()]
    assert await counted(imgkeep, 'imgkeep_confirmations_total{outcome="suspect"}') == 1
    assert (await save(imgkeep, urls[0]))[0] == 200, "by default it is only reported"


async def test_suspects_are_refused_by_setting(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"placeholders": "refuse"})
    *urls, one_more = give_many(origin, PLACEHOLDER, IDENTITIES_MIN + 1)
    for url in urls:
        assert (await save(imgkeep, url))[0] == 201
    for _ in range(3):
        status, problem = await save(imgkeep, one_more)
        assert (status, problem["code"]) == (422, "not_an_image")
        assert "sources.placeholders" in str(problem["detail"])
    assert origin.asked("/missing/10.png") == 1, "the negative cache holds the link"
    assert (await show(imgkeep, urls[0])).body == PLACEHOLDER, "what is stored stays"
    assert (await save(imgkeep, origin.gives("/other.png", IMAGE)))[0] == 201


async def test_many_signatures_are_one_identity(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"providers": [UNCERTAIN], "placeholders": "refuse"})
    signed = SignedOrigin(origin)
    await show(imgkeep, signed.url(good()))
    for number in range(IDENTITIES_MIN + 2):
        await show(imgkeep, signed.url(invented(number)))
    assert (await save(imgkeep, origin.gives("/b.png", PLACEHOLDER)))[1]["suspect"] is False


def test_suspicion_takes_many_identities_within_a_day() -> None:
    timer = Timer()
    suspects = PlaceholderSuspects(timer)

    def note(number: int, host: str = "a.example", digest: str = "d") -> bool:
        return suspects.count(
            replace(
                RECORD,
                identity=f"//{host}/{number}",
                digest=Digest(digest),
                provenance=replace(RECORD.provenance, host=host),
            )
        )

    assert not any(note(number) for number in range(IDENTITIES_MIN - 1))
    assert not note(0), "one identity counts once"
    assert not any(note(number, host="b.example") for number in range(IDENTITIES_MIN - 1)), "each host counts by itself"
    timer.seconds += PERIOD_S + 1
    assert not note(99), "after a day the count begins anew"
    assert not any(note(number) for number in range(IDENTITIES_MIN - 2))
    assert note(50)
    assert not note(51), "it is reported once"
    assert len(suspects) == 1
    timer.seconds += PERIOD_S + 1
    assert len(suspects) == 0


def test_memory_for_suspects_is_bounded() -> None:
    suspects = PlaceholderSuspects(Timer())
    for digest in range(SUSPECTS_MAX + 5):
        for number in range(IDENTITIES_MIN):
            suspects.count(replace(RECORD, identity=f"//a.example/{number}", digest=Digest(str(digest))))
    assert len(suspects) == SUSPECTS_MAX
