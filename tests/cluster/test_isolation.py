"""A member that the database does not confirm serves what it has only if all others that answer are cut off, too."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from imgkeep.cluster.nodes.isolation import RESULT_TTL_S, IsolationCheck
from imgkeep.images.cache_trust import CacheTrust
from tests.support.fakes import Timer
from tests.support.nodes import FakeMembership, make_member, node_listening, peers_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.cluster.nodes.member import Member

STALE_MAX_S = 30.0
DEAD = make_member("dead/1", "http://127.0.0.1:1")


class Checked:
    """A member whose database is silent, and what it finds."""

    def __init__(self, membership: FakeMembership, find_confirmed: Any) -> None:
        self.membership = membership
        self.timer = Timer()
        self.trust = CacheTrust(self.timer)
        members: Any = membership
        self.check = IsolationCheck(
            members,
            find_confirmed,
            trust=self.trust,
            stale_max_s=STALE_MAX_S,
            timer=self.timer,
            sleep=asyncio.sleep,
        ).check

    async def allows_unchecked(self, *, silence_s: float = STALE_MAX_S) -> bool:
        self.membership.silence_s = silence_s
        await self.check()
        return self.trust.allows_unchecked


@asynccontextmanager
async def member_of(*others: Member) -> AsyncIterator[Checked]:
    membership = FakeMembership(*others)
    async with peers_of(membership) as (peers, _):
        yield Checked(membership, peers.find_confirmed)


async def test_node_that_was_confirmed_since_forbids() -> None:
    async with node_listening() as node, member_of(node.member, DEAD) as member:
        assert not await member.allows_unchecked()
        assert await member.allows_unchecked(silence_s=1), "the database answers again"


async def test_nodes_that_are_cut_off_too_allow() -> None:
    async with node_listening() as node, member_of(node.member, DEAD) as member:
        node.silence_s = STALE_MAX_S - member.membership.interval_s  # the database stopped between two heartbeats
        assert await member.allows_unchecked()
        member.timer.seconds += RESULT_TTL_S
        assert not member.trust.allows_unchecked, "a result is short-lived"


async def test_no_answer_forbids() -> None:
    async with member_of(DEAD) as member:
        assert not await member.allows_unchecked()


async def test_only_node_allows_for_ever() -> None:
    second_worker = make_member("here/2", "http://127.0.0.1:9")
    async with member_of(second_worker) as member:
        assert await member.allows_unchecked()
        member.timer.seconds += 3600
        assert member.trust.allows_unchecked


async def test_result_is_there_before_the_trust_ends() -> None:
    async with node_listening() as node, member_of(node.member) as member:
        assert await member.allows_unchecked(silence_s=STALE_MAX_S / 2)
        assert not await member.allows_unchecked(silence_s=STALE_MAX_S - member.membership.interval_s)
