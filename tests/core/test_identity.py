"""What a link names, and whose it is."""

from __future__ import annotations

from hashlib import sha256

import pytest

from proxy.core.identity import KNOWN_HOSTS, find_provider, identify
from proxy.core.policy import Policy, judge
from proxy.core.source import read_source


def test_the_key_is_the_hash_of_the_identity() -> None:
    info = identify(read_source("https://EXAMPLE.com:443/a.png?b=1#c"))
    assert info.identity == "https://example.com/a.png?b=1"
    assert info.key == sha256(info.identity.encode()).hexdigest()


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("oaidalleapiprodscus.blob.core.windows.net", "OpenAI"),
        ("other.blob.core.windows.net", None),
        ("delivery-eu4.bfl.ai", "Black Forest Labs"),
        ("replicate.delivery", "Replicate"),
        ("pbxt.replicate.delivery", "Replicate"),
        ("evil-replicate.delivery", None),
        ("replicate.delivery.example.com", None),
        ("scontent-iad3-1.xx.fbcdn.net", "Meta"),
    ],
)
def test_a_provider_is_known_by_its_host(host: str, provider: str | None) -> None:
    assert find_provider(host) == provider


@pytest.mark.parametrize("glob", KNOWN_HOSTS)
def test_every_known_host_is_one_that_policy_can_match(glob: str) -> None:
    policy = Policy(hosts_allowed=KNOWN_HOSTS, hosts_denied=(), ports=frozenset({443}), networks=())
    assert judge(read_source(f"https://{glob.replace('*', 'x')}/a.png"), policy) is None
    assert judge(read_source("https://stranger.example.com/a.png"), policy) == "host is not in sources.allow"
