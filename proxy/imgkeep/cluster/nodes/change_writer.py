"""
Changes: how the members of a cluster learn of removals, undos and replaced records, and when all of them know.

A change is a row of `cluster_changes` with a notice. A member applies the rows beyond `applied` in their order, writes
the last one into its own row of `cluster_members`, and notifies their authors. An author waits until no live member is
behind. A command that removes an image is no member: it writes changes and applies none.

Rules:
- Rows are written under an advisory lock that lasts until they are visible. So a member that has read a row never meets
  an earlier one later.
- A member that does not confirm a row within `CONFIRM_TIMEOUT_S` is not live any more: the author deletes its row of
  `cluster_members`, as it does with that of a dead one that is behind. The member finds that out with its next
  heartbeat or confirmation, suspends its caches (`images/cache_trust.py`), catches up, and joins again.
- A member that has not applied a change in time does not trust its caches either, before the author goes on without it.
- A member whose last confirmed heartbeat is older than `cluster.stale_max_s` does not trust them either.
- A member catches up before it joins, and once more after its row is there. Which change it may miss, step by step:

1. J reads all rows, and has not joined. A writes a row, and lists the members that are behind: J is not among them.
2. J's row appears. A's row was visible before A's list, and J's row only after it, so J's second reading finds A's row.
3. J counts as joined, and trusts its caches, after its second reading alone.

- Rows are deleted after an hour, the oldest first. A member whose last row is gone, or has another time, may have
  missed some: it forgets everything, and reads the list of blocked digests from the database again. So it does at its
  start, and after a restored backup of the database, which gives the numbers of lost rows to others.
- Without the database a removal is refused, and nothing is done. A replaced record is told to the workers of this
  machine at least; the other nodes learn of it once the database is back.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from imgkeep.cluster.nodes.membership import DEAD_AFTER_S
from imgkeep.cluster.notice import Notice, encode, merge
from imgkeep.core.errors import Busy, StorageError
from imgkeep.database.advisory_locks import CHANGE_LOCK, REMOVAL_LOCKS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

    from imgkeep.clock import Sleep
    from imgkeep.core.records import Digest, Key
    from imgkeep.database.session import DatabaseSession
    from imgkeep.images.interfaces import Notifier

CONFIRM_TIMEOUT_S: Final = 5.0
"""Timeout for a live member to confirm a change: a removal takes no longer, whatever has happened to a node."""
LIST_INTERVAL_S: Final = 0.5
"""Interval of looks for members that end instead of confirming a change."""
UNSENT_MAX: Final = 10_000
"""Maximum number of changes that wait for the database; beyond it the other members forget everything."""
EXCLUSIVE_TIMEOUT_S: Final = 10.0
"""Timeout for another removal or undo of the same digest to end."""
EXCLUSIVE_INTERVAL_S: Final = 0.05
UNLOCK_TIMEOUT_S: Final = 5.0

CHANGES: Final = "imgkeep_changes"
"""The channel of new rows."""

_WRITE: Final = """
WITH alone AS MATERIALIZED (SELECT pg_advisory_xact_lock(%(lock)s)), written AS (
    INSERT INTO cluster_changes (member, payload)
    SELECT %(author)s, payload FROM alone, unnest(%(payloads)s::bytea[]) AS payload RETURNING id
)
SELECT max(id), pg_notify(%(channel)s, '') FROM written
"""
"""The lock first: a row gets its number while no other row is between its number and its commit."""
_LIST_BEHIND: Final = """
SELECT id, heartbeat_at >= clock_timestamp() - make_interval(secs => %s) FROM cluster_members
WHERE id <> %s AND applied < %s
"""
_EXPEL: Final = """
WITH gone AS (
    DELETE FROM cluster_members WHERE id = ANY(%s) AND applied < %s RETURNING id
), freed AS (
    DELETE FROM cluster_leases WHERE member IN (SELECT id FROM gone)
)
SELECT id FROM gone
"""

log = logging.getLogger(__name__)


class ChangeWriter:
    """
    The author of changes: `Notifier` of a cluster.

    Args:
        name: The id of the member; of a command, a name of its own.
        local: The other workers of this machine, for what the database cannot tell them; `None`: there are none.
        timer: Gives monotonic seconds.
        sleep: Waits between two attempts.
    """

    def __init__(
        self,
        session: DatabaseSession,
        name: str,
        *,
        local: Notifier | None = None,
        timer: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._session = session
        self._name = name
        self._local = local
        self._timer = timer
        self._sleep = sleep
        self._pending: list[tuple[Notice, asyncio.Future[asyncio.Task[None]]]] = []
        self._sending: asyncio.Task[None] | None = None
        self._waits: set[asyncio.Task[None]] = set()
        self._applied: dict[str, int] = {}
        """What members have confirmed to this author."""
        self._confirmation = asyncio.Event()
        self._unsent = Notice()
        self.expelled = 0
        """Number of members that did not confirm a change in time."""
        session.listen(channel_of(name), self._note_confirmation)
        session.when_lost(self._applied.clear)  # the next database may be a restored one, with lower numbers

    async def notify(
        self,
        *,
        blocked: Collection[Digest] = (),
        changed: Collection[Key] = (),
        unblocked: Collection[Digest] = (),
    ) -> None:
        """As `Notifier.notify`. Without the database a replaced record reaches the other nodes later."""
        notice = Notice(blocked=list(blocked), changed=list(changed), unblocked=list(unblocked))
        if notice == Notice():
            return
        try:
            await self._tell(notice)
        except StorageError:
            await self._tell_later(Notice(changed=notice.changed, unblocked=notice.unblocked))
            raise

    @asynccontextmanager
    async def exclusively(self, digest: Digest) -> AsyncGenerator[None]:
        """As `Notifier.exclusively`."""
        number = int.from_bytes(sha256(digest.encode()).digest()[:4], "big", signed=True)
        give_up_at = self._timer() + EXCLUSIVE_TIMEOUT_S
        names = (REMOVAL_LOCKS, number)
        while not (await self._session.execute("SELECT pg_try_advisory_lock(%s, %s)", names))[0][0]:
            if self._timer() > give_up_at:
                raise Busy("the image is being removed or restored through another node: retry", retry_after_s=5)
            await self._sleep(EXCLUSIVE_INTERVAL_S)
        try:
            yield
        finally:
            try:
                await self._session.execute("SELECT pg_advisory_unlock(%s, %s)", names, timeout_s=UNLOCK_TIMEOUT_S)
            except StorageError:
                self._session.reset()  # the lock ends with the session; the statement may not have been sent

    def send_unsent(self, settle: Callable[[], Awaitable[None]]) -> None:
        """Start to send the changes that the database could not take before, after the records that it lacks."""
        wait = asyncio.create_task(self._send_unsent(settle))
        self._waits.add(wait)
        wait.add_done_callback(self._end_wait)

    async def _send_unsent(self, settle: Callable[[], Awaitable[None]]) -> None:
        await settle()  # the others look there
        notice, self._unsent = self._unsent, Notice()
        if notice == Notice():
            return
        try:
            await self._tell(notice)
        except StorageError:
            self._keep(notice)

    async def aclose(self) -> None:
        tasks = [*self._waits] if self._sending is None else [self._sending, *self._waits]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _tell(self, notice: Notice) -> None:
        """Write a notice, with all others that wait for the same statement, and wait until all live members know."""
        written: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()
        self._pending.append((notice, written))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await asyncio.shield(await written)

    async def _tell_later(self, notice: Notice) -> None:
        if notice == Notice():
            return
        self._keep(notice)
        if self._local is not None:
            with suppress(StorageError):
                await self._local.notify(changed=notice.changed, unblocked=notice.unblocked)

    def _keep(self, notice: Notice) -> None:
        kept = merge([self._unsent, notice])
        if len(kept.changed) + len(kept.unblocked) > UNSENT_MAX:
            kept = Notice(everything=True)
        self._unsent = kept

    async def _send(self) -> None:
        """Write what waits, one statement after the other."""
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                try:
                    last = await self._write(merge(notice for notice, _ in batch))
                except StorageError as fault:
                    _fail(batch, fault)
                    continue
                except BaseException:  # of this program, or its end
                    _fail([*batch, *self._pending], StorageError("the change was not written: the process is ending"))
                    self._pending = []
                    raise
                wait = asyncio.create_task(self._wait_until_applied(last))
                self._waits.add(wait)
                wait.add_done_callback(self._end_wait)
                for _, written in batch:
                    if not written.done():
                        written.set_result(wait)
        finally:
            self._sending = None

    def _end_wait(self, wait: asyncio.Task[None]) -> None:
        self._waits.discard(wait)
        if not wait.cancelled():
            wait.exception()  # the callers have it, unless they have left

    async def _write(self, notice: Notice) -> int:
        rows = await self._session.execute(
            _WRITE, {"lock": CHANGE_LOCK, "author": self._name, "payloads": encode(notice), "channel": CHANGES}
        )
        return int(rows[0][0])

    async def _wait_until_applied(self, last: int) -> None:
        """
        Wait until every live member has applied a row; a member that does not is live no more.

        Raises:
            StorageError: The database does not tell.
        """
        give_up_at = self._timer() + CONFIRM_TIMEOUT_S
        while True:
            rows = await self._session.execute(_LIST_BEHIND, (DEAD_AFTER_S, self._name, last))
            if dead := [row[0] for row in rows if not row[1]]:
                await self._expel(dead, last)
            waiting = {row[0] for row in rows if row[1]}
            list_again_at = min(self._timer() + LIST_INTERVAL_S, give_up_at)
            while waiting := {member for member in waiting if self._applied.get(member, 0) < last}:
                if not await is_set_within(self._confirmation, list_again_at - self._timer()):
                    break
            if not waiting:
                return
            if self._timer() >= give_up_at:
                await self._expel(list(waiting), last)
                return

    async def _expel(self, members: Sequence[str], last: int) -> None:
        """Delete the rows of members that have not applied a row: they are not live, and catch up before they are."""
        for (member,) in await self._session.execute(_EXPEL, (list(members), last)):
            self.expelled += 1
            log.warning("change not confirmed; member expelled", extra={"member": member})

    def _note_confirmation(self, payload: str) -> None:
        applied, _, member = payload.partition(" ")
        if len(self._applied) > UNSENT_MAX:  # of members that are long gone
            self._applied.clear()
        self._applied[member] = max(int(applied), self._applied.get(member, 0))
        self._confirmation.set()
        self._confirmation = asyncio.Event()


def _fail(batch: list[tuple[Notice, asyncio.Future[asyncio.Task[None]]]], fault: StorageError) -> None:
    """Tell the authors of notices why these were not written: each with a traceback of its own."""
    for _, written in batch:
        if not written.done():
            written.set_exception(StorageError(str(fault), place=fault.place, cause=fault.cause))


def channel_of(member: str) -> str:
    """Return the channel on which an author hears of confirmations; PostgreSQL takes 63 bytes."""
    return f"imgkeep_applied_{member.rpartition('/')[2][:32]}"


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    if seconds > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
