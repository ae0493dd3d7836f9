"""
Any order of genuine, invented, ended and bare links, at origins of every kind: what must hold after each of them.

- A good link never shows anything but its own image once its origin has answered it.
- Nothing that a wrong signature brings may be kept by a client for ever.
- Nothing that is stored is lost.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imgkeep.core.errors import ImgkeepError, OriginError
from imgkeep.core.identity import BUILT_IN, identify, read_provider_rules
from imgkeep.core.identity.invalid_signature import make_invalid_signature
from tests.support.fakes import FakeOrigin, World, read_all, whole
from tests.support.images import make_image
from tests.support.signed_links import ENFORCED, IMAGE, PAST, PLACEHOLDER, UNCERTAIN, good, invented, shaped, strict
from tests.support.signed_links import SignedOrigin as Rule

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from imgkeep.core.records import Source, SourceInfo, Validator
    from imgkeep.images.request_context import Delivery
    from imgkeep.origin.demand import Demand
    from tests.support.fakes import FakeResponse

NOW: Final = datetime(2026, 11, 22, 10, tzinfo=UTC)
PLACE: Final = "https://img.example.com/a.png"
RULES: Final = read_provider_rules([UNCERTAIN, ENFORCED], BUILT_IN)

LINKS: Final = {
    **{f"good {number}": good(number) for number in range(3)},
    **{f"invented {number}": invented(number) for number in range(3)},
    "strict": strict(),
    "ended": good(0, end=PAST),
    "invented and ended": invented(0, end=PAST),
    "strict and ended": strict(end=PAST),
    **{f"shaped {number}": shaped(number) for number in range(2)},
    "bare": "",
}
GENUINE: Final = frozenset({"good 0", "good 1", "good 2", "strict"})


def by_rules(source: Source) -> SourceInfo:
    return identify(source, NOW, RULES)


class JudgingOrigin(FakeOrigin):
    """Answers as `rule` says, for any link."""

    rule: Rule
    down: bool = False

    def _answer(self, source: Source) -> bytes:
        query = source.target.partition("?")[2]
        if self.down:
            raise OriginError("the origin says 503", origin_status=503)
        body = self.rule.shown(query)
        if body is None:
            raise OriginError("the origin says 403", origin_status=403)
        return body

    @asynccontextmanager
    async def fetch(
        self,
        source: Source,
        known: Validator | None = None,
        demand: Demand | None = None,
        *,
        fail_fast: bool = False,
    ) -> AsyncGenerator[FakeResponse]:
        del known, demand, fail_fast
        self.asked.append(source.url)
        yield whole(self._answer(source))


class _Quiet:
    """An origin server that is never started."""

    def on(self, _path: str, _script: object) -> str:
        return ""


class Links(RuleBasedStateMachine):
    """Links to one image, in any order."""

    @initialize(
        kind=st.sampled_from(
            [
                "placeholder",
                "refusal",
                "names",
                "names or refuses",
                "nothing",
                "bare is public",
                "bare is a placeholder",
            ]
        ),
    )
    def begin(self, kind: str) -> None:
        names = {good(number): make_image(seed=20 + number) for number in range(3)}
        self.kind = kind
        self.rule = Rule(
            _Quiet(),  # type: ignore[arg-type]
            placeholder=PLACEHOLDER if kind in {"placeholder", "names"} else None,
            bare={"bare is public": IMAGE, "bare is a placeholder": PLACEHOLDER}.get(kind),
            images=names if kind.startswith("names") else {},
            checks=kind != "nothing",
        )
        self.loop = asyncio.new_event_loop()
        self.draws = 0
        self.down = False
        self.world = self._make_world()
        self.answered: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}

    def _make_world(self, before: World | None = None) -> World:
        async def make() -> World:
            world = World(
                identify=by_rules,
                make_invalid_signature=lambda source: make_invalid_signature(source, NOW, RULES, self._draw),
                origin=JudgingOrigin(),
            )
            if before is not None:
                world.store = before.store
                world.restart()
            return world

        world = self.loop.run_until_complete(make())
        assert isinstance(world.origin, JudgingOrigin)
        world.origin.rule = self.rule
        world.origin.down = self.down
        return world

    def _draw(self, below: int) -> int:
        self.draws += 1
        return int(sha256(str(self.draws).encode()).hexdigest(), 16) % below

    def _run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(step)

    @rule(name=st.sampled_from(sorted(LINKS)))
    def ask(self, name: str) -> None:
        asked = len(self.world.origin.asked)
        try:
            delivery, body = self._run(self._ask(PLACE + LINKS[name]))
        except ImgkeepError:
            assert name not in self.answered, "what a link was shown once, it is shown for ever"
            return
        genuine = self.rule.shown(LINKS[name][1:])
        if name in GENUINE:
            if PLACE + LINKS[name] in self.world.origin.asked[asked:] and not self.down:
                assert body == genuine
                self.answered[name] = body
            if name in self.answered:
                assert body == self.answered[name]
        # A link in the shape of another service's has its own answer for ever, and shows it to its like alone.
        if delivery.immutable and self.rule.checks and name != "bare" and not name.startswith("shaped"):
            assert body != PLACEHOLDER

    async def _ask(self, url: str) -> tuple[Delivery, bytes]:
        delivery = await self.world.ask(url)
        body = await read_all(delivery)
        await self.world.image_service.drain()
        return delivery, body

    @rule()
    def restart(self) -> None:
        self.world = self._make_world(self.world)

    @rule(down=st.booleans())
    def fail(self, *, down: bool) -> None:
        assert isinstance(self.world.origin, JudgingOrigin)
        self.down = self.world.origin.down = down

    @rule()
    def wait(self) -> None:
        self.world.timer.seconds += 3600

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "objects"):
            return
        for name, body in self.objects.items():
            assert self.world.store.objects[name] == body
        self.objects = dict(self.world.store.objects)
        assert all(record.object_name in self.objects for record in self.world.store.records.values())

    @invariant()
    def no_placeholder_is_confirmed(self) -> None:
        if hasattr(self, "objects") and self.rule.checks:
            for record in self.world.store.records.values():
                if self.world.store.objects[record.object_name] == PLACEHOLDER:
                    assert record.doubts

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self._run(self.world.image_service.aclose())
            self.loop.close()


Links.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLinks = Links.TestCase


def test_invented_link_does_not_stand_for_a_verified_one() -> None:
    machine = Links()
    machine.begin("placeholder")
    for name in ("shaped 0", "strict", "shaped 1", "strict"):
        machine.ask(name)
    assert machine.answered == {"strict": IMAGE}
    machine.teardown()
