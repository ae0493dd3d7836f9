"""What `GET /api/policy` tells is what a reader judges by."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from imgkeep.core.derived.derive_policy import WIDTHS_MAX
from imgkeep.core.derived.options import SIDE_MAX
from imgkeep.core.identity import BUILT_IN
from imgkeep.core.policy import Policy, judge
from imgkeep.core.policy_document import (
    ITEMS_MAX,
    describe_policy,
    facts_for_pages,
    read_ladder,
    read_policy,
)
from imgkeep.core.source_url import read_source


def nothing(_: object) -> tuple[str, ...]:
    return ()


def policy(**changes: Any) -> Policy:
    told: dict[str, Any] = {
        "hosts_allowed": ("*.o.example", "o.example/a/*"),
        "hosts_denied": ("bad.o.example",),
        "ports": frozenset({443, 80}),
        "networks": (ip_network("10.1.0.0/16"), ip_network("fd00::/8")),
    }
    return Policy(**{**told, **changes})


def test_written_policy_is_read() -> None:
    for signature, needs_key in (("off", False), ("misses", True), ("always", True)):
        assert read_policy(describe_policy(policy(), signature=signature), nothing) == (policy(), needs_key)


def test_names_count_when_it_is_read() -> None:
    read, _ = read_policy(describe_policy(policy(), signature="off"), lambda _: ("bad.o.example/x",))
    assert judge(read_source("https://a.o.example/a.png"), read) == "host is in sources.deny"


@pytest.mark.parametrize("allowed", [None, ("*",), ("a.example", "*")])
def test_any_host_is_one_star(allowed: tuple[str, ...] | None) -> None:
    assert describe_policy(policy(hosts_allowed=allowed), signature="off")["allow"] == ["*"]


@pytest.mark.parametrize(
    "change",
    [
        {"allow": None},
        {"allow": "*"},
        {"allow": [1]},
        {"allow": ["https://o.example"]},
        {"allow": ["a"] * (ITEMS_MAX + 1)},
        {"deny": {}},
        {"ports": ["443"]},
        {"networks": ["10.0.0.1/8"]},
    ],
)
def test_malformed_policy_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_policy({**describe_policy(policy(), signature="off"), **change}, nothing)


def test_pages_receive_the_allow_list_alone() -> None:
    told = policy(
        hosts_allowed=("a.example", "bad.o.example", "*.c.example"), hosts_denied=("*.o.example", "*.c.example")
    )
    facts = facts_for_pages(told, signature="off")
    assert (facts["allow"], facts["ports"]) == (["a.example"], [80, 443])
    assert "10.1" not in str(facts)
    assert "local" in facts["local"]
    assert facts["inside"]
    assert not facts_for_pages(policy(networks=()), signature="off")["inside"]
    assert facts_for_pages(told, signature="misses")["allow"] == []


def test_words_are_written_out() -> None:
    assert BUILT_IN.resolve(["known", "*.o.example"]) == (*BUILT_IN.known_hosts, "*.o.example")
    assert BUILT_IN.resolve(["shared"]) == BUILT_IN.shared_hosts


@pytest.mark.parametrize("widths", [None, "64", [0], [SIDE_MAX + 1], ["64"], [1.5], [[]], [1] * (WIDTHS_MAX + 1)])
def test_widths_of_a_document_are_read_or_unknown(widths: object) -> None:
    assert read_ladder({"widths": [64, 128]}) == (64, 128)
    assert read_ladder({}) == read_ladder({"widths": widths}) == ()
