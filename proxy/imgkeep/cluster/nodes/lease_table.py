"""
The statements of leases in the table `cluster_leases`, each for many leases at a time.

Rules:
- No clock of a node counts: a row ends by the database's.
- A member changes rows of others only where these have ended, or failed by another link, or are of its own node.
- A request locks no row that another node has, and others in the order of their names: no two requests wait for each
  other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from imgkeep.cluster.nodes.membership import DEAD_AFTER_S
from imgkeep.cluster.progress import read_failure, write_failure
from imgkeep.images.interfaces import LinkFailure
from imgkeep.images.peer_fill import FillFailure
from imgkeep.images.request_context import HeldByPeer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgkeep.cluster.nodes.membership import Membership
    from imgkeep.database.session import DatabaseSession

LEASE_S: Final = DEAD_AFTER_S
"""Seconds until a lease ends that no heartbeat renews: as long as a member without one counts as live."""
FAILURE_BYTES_MAX: Final = 16_384
"""Maximum size of a failure in a row; an error page that is shown to clients may be larger, and is not shared."""
CLEANUP_ROWS_MAX: Final = 10_000
"""Maximum number of rows deleted at a time, a tenth of a second."""

_REQUEST: Final = """
WITH asked AS (
    SELECT * FROM unnest(%(names)s::text[], %(tokens)s::text[], %(links)s::bytea[]) AS asked (name, token, link)
), known AS (
    SELECT held.name, held.member, held.failure, extract(epoch FROM held.until - now())::float8 AS remaining_s
    FROM cluster_leases AS held JOIN asked ON held.name = asked.name
    WHERE held.until > now() AND CASE WHEN held.failure IS NULL THEN NOT starts_with(held.member, %(node)s)
        ELSE held.link = asked.link END
), acquired AS (
    INSERT INTO cluster_leases AS held (name, member, token, until, link)
    SELECT name, %(member)s, token, now() + make_interval(secs => %(lease_s)s), link
    FROM asked WHERE name NOT IN (SELECT name FROM known) ORDER BY name
    ON CONFLICT (name) DO UPDATE SET member = excluded.member, token = excluded.token, until = excluded.until,
        link = excluded.link, stored = false, failure = NULL
    WHERE held.until <= now() OR CASE WHEN held.failure IS NULL THEN starts_with(held.member, %(node)s)
        ELSE held.link <> excluded.link END
    RETURNING name
)
SELECT name, member, failure, remaining_s FROM known
UNION ALL SELECT name, %(member)s, NULL, 0 FROM acquired
"""
"""The first part reads rows that another node has. A name without a row of the result has got another holder since."""
_RELEASE: Final = """
WITH ended AS (
    SELECT * FROM unnest(%(names)s::text[], %(tokens)s::text[], %(keep_s)s::float8[], %(links)s::bytea[],
        %(failures)s::bytea[]) AS ended (name, token, keep_s, link, failure)
), deleted AS (
    DELETE FROM cluster_leases AS held USING ended
    WHERE held.name = ended.name AND held.member = %(member)s AND held.token = ended.token AND keep_s = 0
)
UPDATE cluster_leases AS held
SET until = now() + make_interval(secs => keep_s), stored = ended.failure IS NULL, link = ended.link,
    failure = ended.failure
FROM ended
WHERE held.name = ended.name AND held.member = %(member)s AND held.token = ended.token AND keep_s > 0
"""
_RELEASE_ALL_BUT: Final = """
DELETE FROM cluster_leases
WHERE member = %(member)s AND NOT stored AND failure IS NULL AND token <> ALL(%(tokens)s::text[])
"""
_CLEAN_UP: Final = """
DELETE FROM cluster_leases WHERE name IN (
    SELECT name FROM cluster_leases WHERE until < now() ORDER BY until LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)
"""


class Release:
    """
    The end of one lease.

    Attributes:
        sent: Set when the database has it, or cannot be told.

    Args:
        name: The name of the lease.
        token: Its token.
        keep_s: Seconds for which other nodes still see it.
        failure: What they are told for as long as it says.
    """

    __slots__ = ("failure", "keep_s", "link", "name", "sent", "token")

    def __init__(self, name: str, token: str, *, keep_s: float = 0, failure: LinkFailure | None = None) -> None:
        self.name = name
        self.token = token
        self.keep_s = keep_s
        self.link: bytes | None = None
        self.failure: bytes | None = None
        self.sent = asyncio.Event()
        written = None if failure is None else write_failure(FillFailure(failure.link, failure.error))
        if failure is not None and written is not None and len(written) <= FAILURE_BYTES_MAX:
            self.link, self.failure, self.keep_s = failure.link, written, failure.ttl_s


class LeaseTable:
    """The leases of all members, as one of them reads and changes them. Each method raises `StorageError`."""

    def __init__(self, session: DatabaseSession, membership: Membership) -> None:
        self._session = session
        self._membership = membership

    async def request(
        self, tokens: Mapping[str, str], links: Mapping[str, bytes]
    ) -> dict[str, HeldByPeer | LinkFailure | None]:
        """
        Request leases by their names; return which have an answer: `None`, if this member has the lease.

        Another one has just got another holder.
        """
        self._membership.require_joined()
        me = self._membership.identity
        rows = await self._session.execute(
            _REQUEST,
            {
                "names": list(tokens),
                "tokens": list(tokens.values()),
                "links": [links[name] for name in tokens],
                "member": me.id,
                "node": f"{me.node}/",
                "lease_s": LEASE_S,
            },
        )
        return {row[0]: self._read(links[row[0]], *row) for row in rows}

    async def release(self, releases: Sequence[Release]) -> None:
        """End leases of this member, unless they have ended and are another one's."""
        releases = sorted(releases, key=lambda release: release.name)
        try:
            await self._session.execute(
                _RELEASE,
                {
                    "member": self._membership.id,
                    "names": [release.name for release in releases],
                    "tokens": [release.token for release in releases],
                    "keep_s": [release.keep_s for release in releases],
                    "links": [release.link for release in releases],
                    "failures": [release.failure for release in releases],
                },
            )
        finally:
            for release in releases:
                release.sent.set()

    async def release_all_but(self, tokens: Sequence[str]) -> None:
        """End all leases of this member whose fills run, as far as the table knows, but those with a token of these."""
        await self._session.execute(_RELEASE_ALL_BUT, {"member": self._membership.id, "tokens": list(tokens)})

    async def clean_up(self) -> None:
        """Delete rows that have ended."""
        await self._session.execute(_CLEAN_UP, {"rows_max": CLEANUP_ROWS_MAX})

    def _read(
        self, link: bytes, name: str, holder: str, failure: bytes | None, remaining_s: float
    ) -> HeldByPeer | LinkFailure | None:
        if failure is None:
            return None if holder == self._membership.id else HeldByPeer(holder, name)
        try:
            return LinkFailure(link, read_failure(failure).error, remaining_s)
        except (ValueError, TypeError):
            return None  # of another version: this node asks the origin as well
