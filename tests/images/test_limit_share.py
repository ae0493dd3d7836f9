"""The limits per client hold for all processes of a server together, whichever of them a client reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Busy, RateLimited
from imgkeep.core.records import Client, Key, Subject
from imgkeep.images.fill_rate_limit import DAY_S, FillLimits, RateLimiter
from imgkeep.images.fill_result import FillResult, NotBegun, Skipped
from imgkeep.images.limit_share import LimitShare
from imgkeep.images.lookup_rate_limit import MissLimiter
from tests.support.network import Timer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.images.fill_rate_limit import Permit

NETWORKS = ("192.0.2.1",)
CLIENT = Client(networks=NETWORKS)


class Nodes:
    """The limiters of several processes, which a balancer asks in turn."""

    def __init__(self, number: int, *, per_minute: int = 0, concurrent: int = 0, bytes_per_day: int = 0) -> None:
        limits = FillLimits(per_minute, concurrent, bytes_per_day)
        self.timer = Timer()
        self.refused: list[str] = []
        self.waits_s: list[float] = []
        self.shares = [LimitShare(number) for _ in range(number)]
        self.limiters = [
            RateLimiter(limits, timer=self.timer, refused=self.refused.append, share=share) for share in self.shares
        ]

    def set_members(self, members: int) -> None:
        for share in self.shares:
            share.set_members(members)

    def ask(self, times: int, nodes: Sequence[int] | None = None) -> list[Permit]:
        """Ask for fills in turn, and return the permits."""
        chosen = [self.limiters[node] for node in nodes or range(len(self.limiters))]
        permits = []
        for turn in range(times):
            try:
                permits.append(chosen[turn % len(chosen)].acquire(NETWORKS))
            except RateLimited as error:
                self.waits_s.append(error.retry_after_s)
        return permits


@pytest.mark.parametrize("members", [1, 3, 7, 60])
def test_limit_per_minute_holds_over_all_members(members: int) -> None:
    nodes = Nodes(members, per_minute=60)
    assert len(nodes.ask(200 * members)) == 60 // members * members
    assert 1 <= min(nodes.waits_s) <= max(nodes.waits_s) <= 60
    nodes.timer.seconds += 60
    assert len(nodes.ask(200 * members)) == 60 // members * members


def test_member_admits_at_least_one_fill() -> None:
    nodes = Nodes(8, per_minute=3, concurrent=2, bytes_per_day=1)
    assert len(nodes.ask(80)) == 8
    assert set(nodes.refused) == {"fills_concurrent"}


def test_share_grows_when_a_member_leaves_and_shrinks_when_one_joins() -> None:
    nodes = Nodes(3, per_minute=60)
    assert len(nodes.ask(60)) == 60
    nodes.set_members(2)
    assert nodes.ask(60, [0, 1]) == []
    nodes.timer.seconds += 60
    assert len(nodes.ask(200, [0, 1])) == 60
    nodes.set_members(3)
    nodes.timer.seconds += 60
    assert len(nodes.ask(200)) == 60


def test_change_of_members_gives_no_client_a_full_bucket() -> None:
    nodes = Nodes(2, per_minute=60)
    nodes.ask(30)
    for members in (1, 5, 2, 0, 2):
        nodes.set_members(members)
    assert len(nodes.ask(200)) == 30


def test_fills_at_a_time_hold_over_all_members() -> None:
    nodes = Nodes(3, concurrent=12)
    assert len(nodes.ask(100)) == 12


async def test_fill_of_another_node_costs_nothing() -> None:
    nodes = Nodes(3, per_minute=60)
    for _ in range(200):
        for permit in nodes.ask(1):
            await permit.fill_ended(FillResult(Subject(Key("k"), "a.example"), 0, NotBegun(Busy("another node"))))
    assert len(nodes.ask(200)) == 60


async def test_bytes_of_a_day_hold_over_all_members() -> None:
    nodes = Nodes(4, bytes_per_day=1000)
    admitted = 0
    for _ in range(100):
        for permit in nodes.ask(1, [admitted % 4]):
            admitted += 1
            await permit.fill_ended(FillResult(Subject(Key("k"), "a.example"), 50, Skipped()))
    assert admitted == 24, "each member overdraws its part by one fill, as a single process does"
    nodes.timer.seconds += DAY_S // 5 + 1
    assert len(nodes.ask(1, [0])) == 1


def test_misses_hold_over_all_members() -> None:
    timer = Timer()
    limiters = [MissLimiter(12, timer=timer, refused=lambda _: None, share=LimitShare(3)) for _ in range(3)]
    admitted = 0
    for turn in range(60):
        limiter = limiters[turn % 3]
        try:
            limiter.check(CLIENT)
        except RateLimited:
            continue
        limiter.note(CLIENT)
        admitted += 1
    assert admitted == 12
