"""The member's reading of changes (`change_writer.py` has the rules), and whether its caches are trusted meanwhile."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.cluster.nodes.change_writer import CHANGES, channel_of, is_set_within
from imgkeep.cluster.nodes.membership import HEARTBEAT_INTERVAL_S
from imgkeep.cluster.notice import Notice, decode, merge
from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from imgkeep.clock import Sleep
    from imgkeep.cluster.nodes.change_writer import ChangeWriter
    from imgkeep.cluster.nodes.membership import Membership
    from imgkeep.cluster.notice import Learn
    from imgkeep.database.session import DatabaseSession, Row
    from imgkeep.images.cache_trust import CacheTrust

    Act = Callable[[], Awaitable[None]]

ROWS_MAX: Final = 100
"""Maximum number of changes that are read at once: 35 MB, if each is as large as one can be."""
RETRY_DELAY_S: Final = 1.0
"""Delay after a change that could not be applied, as where a failing disk does not delete copies."""
KEEP_S: Final = 3600
"""Seconds for which a change stays for members that are away; one that is away for longer reads everything anew."""
CLEAN_UP_INTERVAL_S: Final = 600.0
CLEAN_UP_MAX: Final = 10_000
"""Maximum number of rows that one statement deletes: more could take longer than a statement may."""
"""Interval of deleting older changes."""

LATE_AFTER_S: Final = 4.0
"""Time after the notification of a change after which a member that has not applied it does not trust its caches: the
author waits for a second longer (`change_writer.CONFIRM_TIMEOUT_S`)."""

_READ: Final = "SELECT id, member, payload, at FROM cluster_changes WHERE id > %s ORDER BY id LIMIT %s"
_FIND_POSITION: Final = """
SELECT coalesce(min(id), 0), coalesce(max(id), 0), max(at) FILTER (WHERE id = %s),
    (SELECT at FROM cluster_changes ORDER BY id DESC LIMIT 1)
FROM cluster_changes
"""
_CONFIRM: Final = """
WITH mine AS (UPDATE cluster_members SET applied = %(applied)s WHERE id = %(member)s RETURNING id)
SELECT CASE WHEN channel IS NOT NULL THEN pg_notify(channel, %(applied)s || ' ' || id) END
FROM mine LEFT JOIN unnest(%(channels)s::text[]) AS channel ON true
"""
_CLEAN_UP: Final = """
WITH gone AS (
    DELETE FROM cluster_changes WHERE id IN (
        SELECT id FROM cluster_changes
        WHERE at < clock_timestamp() - make_interval(secs => %s) AND id < (SELECT max(id) FROM cluster_changes)
        ORDER BY id LIMIT %s
    ) RETURNING id
)
SELECT count(*) FROM gone
"""
"""The last row stays, and tells each member that it has missed none."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    """
    What applies changes to the memory of this process. Each raises `StorageError` where it may not have.

    Attributes:
        learn: Applies blocked digests, changed keys, copies, and digests that may be blocked no longer.
        learn_everything: Forgets every record, and reads the removals anew.
        settle: Writes the records that the database lacks, as far as it answers.
    """

    learn: Learn
    learn_everything: Act
    settle: Act


class ChangeReader:
    """
    The member's reading of changes.

    Args:
        membership: Keeps the number of the last applied row.
        receiver: What applies the changes.
        writer: Sends changes that could not be sent before, once the database is back.
        trust: The caches of this process.
        stale_max_s: `cluster.stale_max_s`.
        timer: Gives monotonic seconds.
        sleep: Waits between two attempts.
    """

    def __init__(  # noqa: PLR0913 - all but three by name
        self,
        session: DatabaseSession,
        membership: Membership,
        receiver: Receiver,
        *,
        writer: ChangeWriter,
        trust: CacheTrust,
        stale_max_s: float,
        timer: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.applied = 0
        """Number of changes that were applied."""
        self._session = session
        self._membership = membership
        self._receiver = receiver
        self._writer = writer
        self._trust = trust
        self._stale_max_s = stale_max_s
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._notified = asyncio.Event()
        self._has_position = False
        """Whether this process has ever read the changes up to `Membership.applied`."""
        self._applied_at: datetime | None = None
        """The time of the last applied row: another row has its number after a restored backup."""
        self._may_apply = False
        """Whether no row can be missing between the last applied one and the next."""
        self._is_current = False
        """Whether this member has applied what it had to before it joined."""
        self._has_failed = False
        """Whether it is applying a change, or could not apply the last one, or not in time."""
        self._deadline: asyncio.TimerHandle | None = None
        """When the oldest change is late that `run` has not begun to read."""
        trust.until = timer() + stale_max_s
        session.listen(CHANGES, lambda _: self._note_notification())
        session.when_lost(self._note_lost)
        membership.before_joining(self.catch_up)
        membership.after_joining(self._finish_catching_up)
        membership.when_confirmed(self._note_confirmed)

    async def run(self) -> None:
        """Apply changes as they come, for ever; and look for them in an interval, should notifications not arrive."""
        was_trusted = True
        while True:
            await is_set_within(self._notified, HEARTBEAT_INTERVAL_S)
            if self._trust.holds != was_trusted:
                was_trusted = not was_trusted
                log.log(
                    logging.INFO if was_trusted else logging.WARNING,
                    "caches in use again" if was_trusted else "caches suspended; asking the store",
                )
            self._notified.clear()
            deadline, self._deadline = self._deadline, None
            try:
                if self._may_apply:  # else the rest is read before this member joins again
                    async with self._lock:
                        await self._apply_new()
            except Exception as error:
                if isinstance(error, StorageError):
                    log.warning("changes not applied", extra={"reason": error.in_full})
                else:
                    log.exception("changes not applied unexpectedly")
                if deadline is not None:  # it is the earlier one
                    _cancel(self._deadline)
                    self._deadline = deadline
                await self._sleep(RETRY_DELAY_S)
                self._notified.set()
            else:
                _cancel(deadline)

    async def clean_up(self) -> None:
        """Delete old rows in an interval, for ever: the leader's duty."""
        while True:
            await self._sleep(CLEAN_UP_INTERVAL_S)
            with suppress(StorageError):
                count = CLEAN_UP_MAX
                while count == CLEAN_UP_MAX:
                    count = (await self._session.execute(_CLEAN_UP, (KEEP_S, CLEAN_UP_MAX)))[0][0]

    async def catch_up(self) -> None:
        """
        Apply what this process has missed, before it joins.

        Raises:
            StorageError: It may still be missing something.
        """
        self._suspend()
        async with self._lock:
            applied = self._membership.applied
            rows = await self._session.execute(_FIND_POSITION, (applied,))
            oldest, newest, applied_at, newest_at = rows[0]
            misses_none = oldest <= 1 if applied == 0 else applied_at is not None and applied_at == self._applied_at
            if not self._has_position or not misses_none:
                if self._has_position:
                    log.warning("changes missed; reading everything anew", extra={"applied": applied, "oldest": oldest})
                await self._receiver.learn_everything()
                self._membership.applied, self._applied_at = newest, newest_at
                self._has_position = True
            self._may_apply = True
            self._has_failed = False
            await self._apply_new()

    async def _finish_catching_up(self) -> None:
        async with self._lock:
            await self._apply_new()
        self._is_current = True
        self._writer.send_unsent(self._receiver.settle)

    async def _apply_new(self) -> None:
        """Apply the rows that are there, and confirm them."""
        count = ROWS_MAX
        while count == ROWS_MAX:
            rows = await self._session.execute(_READ, (self._membership.applied, ROWS_MAX))
            count = len(rows)
            self._has_failed = bool(rows)
            if not rows:
                return
            await self._learn(rows)
            self._has_failed = False
            self.applied += count
            self._membership.applied, self._applied_at = rows[-1][0], rows[-1][3]
            authors = {row[1] for row in rows} - {self._membership.id}
            confirmed = await self._session.execute(
                _CONFIRM,
                {
                    "applied": self._membership.applied,
                    "member": self._membership.id,
                    "channels": [*map(channel_of, authors)],
                },
            )
            if not confirmed and self._is_current:
                self._suspend()  # the row is gone: the next heartbeat finds that out, and has this member join again

    async def _learn(self, rows: Sequence[Row]) -> None:
        """Apply the notices of other members."""
        notice = merge(_read_notice(row) for row in rows if row[1] != self._membership.id)
        try:
            if notice.everything:
                await self._receiver.learn_everything()
            await self._receiver.learn(notice.blocked, notice.changed, {}, notice.unblocked)
        except BaseException:
            self._trust.suspend()
            raise

    def _suspend(self) -> None:
        self._is_current = False
        self._trust.suspend()

    def _note_notification(self) -> None:
        self._notified.set()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(LATE_AFTER_S, self._note_late)

    def _note_late(self) -> None:
        """Trust no cache: the author of a change goes on soon without this member."""
        self._has_failed = True
        self._trust.suspend()

    def _note_lost(self) -> None:
        self._may_apply = False

    def _note_confirmed(self, at: float | None) -> None:
        if at is None:
            self._suspend()
        elif self._is_current and not self._has_failed:
            self._trust.until = at + self._stale_max_s


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _read_notice(row: Row) -> Notice:
    try:
        return decode(row[2])
    except msgspec.DecodeError:  # of a newer version
        return Notice(everything=True)
