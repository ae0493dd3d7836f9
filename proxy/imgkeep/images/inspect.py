"""Inspection of links: the facts of a link without a fetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.core.identity import identify
from imgkeep.core.policy import judge
from imgkeep.core.source_url import own_path, read_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.clock import Clock
    from imgkeep.config import Config
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source, SourceInfo


@dataclass(frozen=True, slots=True)
class Inspector:
    """
    The facts of links by which `/img` decides.

    Attributes:
        policy: The policy for sources.
        identify: Tells which image a link names and what kind of link it is.
        public: `server.public_url`.
        is_gone: Tells of a URL whether a placeholder for deleted images is stored there.
    """

    policy: Policy
    identify: Callable[[Source], SourceInfo]
    public: Source | None
    is_gone: Callable[[Source], bool] = lambda _: False

    def inspect(self, source: Source) -> dict[str, object]:
        """
        Return the facts as `GET /api/inspect` gives them.

        `ours`: the link lies under `server.public_url`. `signature_checked`: see `SourceInfo.enforced`; None: the
        identity leaves out nothing that grants access.
        """
        info = self.identify(source)
        reason = judge(source, self.policy)
        return {
            "url": source.url,
            "identity": info.identity,
            "key": info.key,
            "provider": info.provider,
            "scheme": info.scheme,
            "temporary": info.temporary,
            "expires_at": info.expires_at,
            "signature_checked": info.enforced if info.permission else None,
            "ours": self.public is not None and own_path(source, self.public) is not None,
            "allowed": reason is None,
            "reason": reason,
        }


def make_inspector(config: Config, clock: Clock) -> Inspector:
    """Make an inspector with the provider rules and the policy of a configuration."""
    rules = config.read_provider_rules()
    exact = config.sources.identity == "exact"
    return Inspector(
        policy=config.policy(rules),
        identify=lambda source: identify(source, clock(), rules, exact=exact),
        is_gone=rules.is_gone,
        public=read_source(config.server.public_url) if config.server.public_url else None,
    )
