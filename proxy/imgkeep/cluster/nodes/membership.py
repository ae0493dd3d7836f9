"""
Membership: which processes of all nodes are alive, by the clock of the database.

Each process is a member, under a name that no other process ever has. It joins as soon as it reaches the database,
tells every `HEARTBEAT_INTERVAL_S` that it lives, and reads with the same statement which others do. A member without a
heartbeat for `DEAD_AFTER_S` is dead: the next heartbeat of any other member deletes its row and its leases.

Rules:
- No clock of a node counts. `now` is the database's, carried on by this machine's monotonic timer.
- A member whose row is gone (it was silent for too long, or did not confirm a change) is not live. It catches up
  (`before_joining`) before it joins again, and until then it is `is_current` no more.
- The database belongs to one cluster: it remembers the store and the secret of its members. Another store is refused
  for ever, another secret as long as any member lives.
- A process that is the only one of its node replaces an earlier one at once, whose leases end with it.
- Two machines with one `cluster.name` would take each other's outbox for their own: the later one waits until the
  earlier one is dead, and is refused if it is not.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from imgkeep.cluster.nodes.member import Member, MemberIdentity, find_rival
from imgkeep.cluster.nodes.secret_mark import SECRET_MARK, find_conflict, make_mark, matches
from imgkeep.core.errors import StorageError
from imgkeep.database.advisory_locks import JOIN_LOCK
from imgkeep.database.schema_upgrade import IncompatibleDatabase
from imgkeep.database.store_mark import STORE_MARK, describe_other_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from imgkeep.clock import Sleep
    from imgkeep.database.session import Connection, DatabaseSession

HEARTBEAT_INTERVAL_S: Final = 5.0
"""Interval of heartbeats: three may be lost before a member counts as dead."""
DEAD_AFTER_S: Final = 15
"""Seconds without a heartbeat after which a member is dead; a pause of its machine is shorter."""
NAME_WAIT_S: Final = DEAD_AFTER_S + 5
"""Timeout for the earlier machine with the same name to die: it may have lost its disk, and be this one."""
NAME_WAIT_INTERVAL_S: Final = 1.0

_JOIN: Final = """
INSERT INTO cluster_members (id, node, host, advertise_url, version, applied)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET heartbeat_at = now(), applied = excluded.applied
"""
_REPLACE: Final = """
WITH gone AS (DELETE FROM cluster_members WHERE node = %s AND host = %s AND id <> %s RETURNING id)
DELETE FROM cluster_leases WHERE member IN (SELECT id FROM gone)
"""
_HEARTBEAT: Final = """
WITH beat AS (
    UPDATE cluster_members SET heartbeat_at = clock_timestamp() WHERE id = %(id)s RETURNING id
), dead AS (
    DELETE FROM cluster_members
    WHERE heartbeat_at < clock_timestamp() - make_interval(secs => %(dead_s)s) AND id <> %(id)s RETURNING id
), freed AS (
    DELETE FROM cluster_leases WHERE member IN (SELECT id FROM dead)
), renewed AS (
    UPDATE cluster_leases SET until = clock_timestamp() + make_interval(secs => %(dead_s)s)
    WHERE member = %(id)s AND NOT stored AND failure IS NULL AND until > now()
)
SELECT clock_timestamp(), (SELECT count(*) FROM beat), id, node, advertise_url, version, started_at
FROM (SELECT 1) AS one LEFT JOIN cluster_members
ON heartbeat_at >= clock_timestamp() - make_interval(secs => %(dead_s)s)
"""
"""One statement, whose parts see the tables as they were before it."""

log = logging.getLogger(__name__)


class RefusedByCluster(IncompatibleDatabase):
    """A database that another cluster uses, or another machine with the name of this one."""


class Membership:
    """
    The membership of this process.

    Attributes:
        members: The live members by their ids, as of the last heartbeat; this one is among them once it has joined.
        applied: The last change that this member has applied; what it joins with.

    Args:
        identity: What it tells of itself.
        session: The session of the database.
        timer: Returns monotonic seconds.
        sleep: Waits between two heartbeats.
        interval_s: Interval of heartbeats.
    """

    def __init__(
        self,
        identity: MemberIdentity,
        session: DatabaseSession,
        *,
        timer: Callable[[], float],
        sleep: Sleep,
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self.identity = identity
        self.members: Mapping[str, Member] = {}
        self.applied = 0
        self.refused: RefusedByCluster | None = None
        self.found_refused = asyncio.Event()
        self._session = session
        self._timer = timer
        self._sleep = sleep
        self.interval_s = interval_s
        self._before_joining: list[Callable[[], Awaitable[None]]] = []
        self._after_joining: list[Callable[[], Awaitable[None]]] = []
        self._confirmed: list[Callable[[float | None], None]] = []
        self._count_changed: list[Callable[[int], None]] = []
        self._gone: list[Callable[[str], None]] = []
        self._is_joined = False
        self._confirmed_at = timer()
        """When the database last confirmed that this member is live, by the timer."""
        self._own_mark: str | None = None
        """The mark in which the secret of this member was found: its hash is slow on purpose."""
        self._clock: tuple[float, float] | None = None
        """The database's clock in seconds since the epoch, and the timer at that moment."""
        session.when_opened(self.join)
        session.when_lost(self._note_lost)

    @property
    def id(self) -> str:
        return self.identity.id

    @property
    def is_joined(self) -> bool:
        """Whether this member has joined, and notifications reach it."""
        return self._is_joined

    @property
    def silence_s(self) -> float:
        """For how many seconds the database has not confirmed that this member is live."""
        return self._timer() - self._confirmed_at

    def is_confirmed_within(self, seconds: float) -> bool:
        """Tell whether the database has confirmed within so many seconds that this member is live."""
        return self._is_joined and self.silence_s <= seconds

    def now(self) -> float:
        """
        Return the time by the database's clock, in seconds since the epoch.

        Raises:
            StorageError: The database has never been reached.
        """
        if self._clock is None:
            raise StorageError("the time of the cluster is not known: its database has not been reached")
        at, measured = self._clock
        return at + (self._timer() - measured)

    def require_joined(self) -> None:
        """Raise `StorageError` if other members may not count this one as live."""
        if not self._is_joined:
            raise StorageError("this process is no live member of its cluster", place=self._session.place)

    def before_joining(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback` before each attempt to join: this member has missed changes. `StorageError`: not yet."""
        self._before_joining.append(callback)

    def after_joining(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback` once the row is there, before this member counts as joined. As `before_joining`."""
        self._after_joining.append(callback)

    def when_confirmed(self, callback: Callable[[float | None], None]) -> None:
        """
        Call `callback` whenever the database has confirmed that this member is live, with the time of the question by
        the timer; with `None`, where its row is gone.
        """
        self._confirmed.append(callback)

    def when_count_changes(self, callback: Callable[[int], None]) -> None:
        """Call `callback` with the number of live members, whenever it changes."""
        self._count_changed.append(callback)

    def when_gone(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the id of each member that is not live any more."""
        self._gone.append(callback)

    async def join(self) -> None:
        """
        Join the cluster, after this member has caught up.

        Raises:
            StorageError: It has not joined.
            RefusedByCluster: The database belongs to another cluster.
        """
        try:
            await self._check_marks()
            for callback in self._before_joining:
                await callback()
            await self._session.execute(_JOIN, self._row())
            for callback in self._after_joining:
                await callback()
            await self.beat()
        except RefusedByCluster as error:
            self.refused = error
            self.found_refused.set()
            raise

    async def beat(self) -> None:
        """
        Tell that this member lives, and read which others do.

        Raises:
            StorageError: The database did not answer.
        """
        sent_at = self._timer()
        rows = await self._session.execute(
            _HEARTBEAT, {"id": self.id, "dead_s": DEAD_AFTER_S}, timeout_s=HEARTBEAT_INTERVAL_S
        )
        now, is_joined = rows[0][0], bool(rows[0][1])
        self._clock = (now.timestamp(), (sent_at + self._timer()) / 2)
        self._note_members({row[2]: Member(*row[2:]) for row in rows if row[2] is not None})
        self._is_joined = is_joined
        if is_joined:
            self._confirmed_at = sent_at
        for callback in self._confirmed:
            callback(sent_at if is_joined else None)

    async def run(self) -> None:
        """Send heartbeats, for ever; join again where the row is gone."""
        while True:
            await self._sleep(self.interval_s)
            try:
                if self._session.is_connected:
                    await self.beat()
                    if not self._is_joined:
                        log.warning("membership lost; catching up", extra={"member": self.id})
                        await self.join()
            except StorageError as error:
                log.warning("heartbeat failed", extra={"reason": error.in_full})
            except Exception:  # no error of a callback may end this loop
                log.exception("heartbeat failed unexpectedly")

    async def leave(self) -> None:
        """Delete this member's row and leases, as it ends; a member that cannot is dead a moment later."""
        self._is_joined = False
        try:
            await remove_members(self._session, [self.id])
        except StorageError:
            return

    def _row(self) -> tuple[object, ...]:
        me = self.identity
        return me.id, me.node, me.host, me.advertise_url, me.version, self.applied

    def _note_lost(self) -> None:
        self._is_joined = False

    def _note_members(self, members: Mapping[str, Member]) -> None:
        before = self.members
        self.members = members
        for member in members.values():
            if member.id not in before:
                log.info("member joined", extra={"member": member.id, "version": member.version})
        for member in before.values():
            if member.id not in members:
                log.info("member gone", extra={"member": member.id})
                for told in self._gone:
                    told(member.id)
        if len(members) != len(before):
            for callback in self._count_changed:
                callback(len(members))

    async def _check_marks(self) -> None:
        """Check that the database is that of this cluster, and mark a new one."""
        give_up_at = self._timer() + NAME_WAIT_S
        while True:
            rival = await self._session.transaction(self._mark)
            if rival is None:
                return
            if self._timer() > give_up_at:
                raise self._refuse(rival)
            await self._sleep(NAME_WAIT_INTERVAL_S)

    async def _mark(self, connection: Connection) -> str | None:
        """Compare the marks with this node, and set those that are missing; return what a live rival has as well."""
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (JOIN_LOCK,))
        cursor = await connection.execute(
            "SELECT node, host, advertise_url FROM cluster_members "
            "WHERE heartbeat_at >= clock_timestamp() - make_interval(secs => %s) AND id <> %s",
            (DEAD_AFTER_S, self.id),
        )
        living = await cursor.fetchall()
        me = self.identity
        others = [row for row in living if row[1] != me.host]
        cursor = await connection.execute("SELECT name, value FROM state WHERE name IN ('secret', 'store')")
        marks: dict[str, Any] = dict(await cursor.fetchall())
        if marks.get(STORE_MARK, me.store) != me.store:
            raise self._refuse(describe_other_store(marks[STORE_MARK]))
        mark = marks.get(SECRET_MARK)
        is_same = mark is not None and mark == self._own_mark
        if not is_same:
            is_same = await asyncio.to_thread(matches, mark, me.secret)
            self._own_mark = mark if is_same else None
        if (conflict := find_conflict(me.secret, is_same=is_same, others_live=bool(others))) is not None:
            raise self._refuse(conflict)
        if not is_same:
            if mark is not None:
                log.warning("secret of the cluster changed: no other node lives")
            marks[SECRET_MARK] = await asyncio.to_thread(make_mark, me.secret)
        marks[STORE_MARK] = me.store
        for name, value in marks.items():
            await connection.execute(
                "INSERT INTO state (name, value) VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, value),
            )
        if me.is_only_process:
            await connection.execute(_REPLACE, (me.node, me.host, me.id))
        return find_rival(me, others)

    def _refuse(self, message: str) -> RefusedByCluster:
        return RefusedByCluster(message, place=self._session.place)


async def remove_members(session: DatabaseSession, ids: list[str]) -> None:
    """Delete rows and leases of members that are not live. Raises: StorageError."""
    await session.execute(
        "WITH gone AS (DELETE FROM cluster_members WHERE id = ANY(%s) RETURNING id) "
        "DELETE FROM cluster_leases WHERE member IN (SELECT id FROM gone)",
        (ids,),
    )
