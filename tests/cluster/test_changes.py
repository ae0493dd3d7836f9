"""Changes of a cluster: each live member applies them before their author goes on, and no member misses one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import psycopg
import pytest

from imgkeep.cluster.nodes import change_reader, change_writer
from imgkeep.cluster.nodes.change_writer import UNSENT_MAX, ChangeWriter
from imgkeep.cluster.notice import NAMES_MAX, Notice, decode, encode, merge
from imgkeep.core.errors import Busy, StorageError
from imgkeep.core.records import Digest, Key
from imgkeep.database.advisory_locks import CHANGE_LOCK
from tests.support.change_nodes import STALE_MAX_S, ChangeNode, make_tables
from tests.support.members import make_session
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractAsyncContextManager

    from tests.support.postgresql import PostgresqlServer

X, Y = Digest("x" * 64), Digest("y" * 64)
K = Key("k" * 64)


@pytest.fixture
async def url(postgresql_url: str) -> str:
    """Give the URL of a database with its tables."""
    return await make_tables(postgresql_url)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no author wait long for a member that does not confirm."""
    monkeypatch.setattr(change_writer, "CONFIRM_TIMEOUT_S", 0.1)
    monkeypatch.setattr(change_writer, "LIST_INTERVAL_S", 0.02)
    monkeypatch.setattr(change_reader, "LATE_AFTER_S", 0.05)


async def lose_session(node: ChangeNode, by: ChangeNode) -> None:
    """End both connections of a node, as a partition does; it connects again at once."""
    (row,) = await node.session.execute("SELECT pg_backend_pid()")
    node.session._fault.set()
    await by.session.execute("SELECT pg_terminate_backend(%s)", row)
    await until(lambda: not node.membership.is_joined)


# --- telling all


async def test_change_reaches_every_member_before_its_author_goes_on(url: str) -> None:
    a, b, c = ChangeNode(url, "a"), ChangeNode(url, "b"), ChangeNode(url, "c")
    async with a.running(), b.running(), c.running():
        await a.writer.notify(blocked=[X], changed=[K])
        for node in (b, c):
            assert (node.learner.blocked, node.learner.changed) == ([X], [K])
            assert await node.applied() == 1
        await b.writer.notify(unblocked=[X])
        assert (a.learner.blocked, a.learner.unblocked) == ([], [X]), "what it has told it does not learn"
        assert c.learner.unblocked == [X]


async def test_author_waits_for_a_member_that_is_busy(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        b.learner.gate.clear()
        telling = asyncio.create_task(a.writer.notify(blocked=[X]))
        await until(b.reader._lock.locked)
        done, _ = await asyncio.wait([telling], timeout=0.05)
        assert not done
        b.learner.gate.set()
        await telling
        assert b.learner.blocked == [X]
        assert a.writer.expelled == 0


async def test_author_does_not_wait_for_a_member_that_ends(url: str, hurried: None) -> None:
    del hurried
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        b.learner.gate.clear()
        telling = asyncio.create_task(a.writer.notify(blocked=[X]))
        await until(b.reader._lock.locked)
        await b.membership.leave()
        await telling
        assert a.writer.expelled == 0


async def test_thousand_changes_are_one_statement_a_batch(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    digests = [Digest(f"{number:064x}") for number in range(1000)]
    async with a.running(), b.running():
        before = a.session.statements, b.session.statements
        await asyncio.gather(*(a.writer.notify(blocked=[digest]) for digest in digests))
        assert b.learner.blocked == digests
        assert a.session.statements - before[0] < 10
        assert b.session.statements - before[1] < 10


async def test_largest_change_comes_in_parts(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    keys = [Key(f"{number:064x}") for number in range(2 * NAMES_MAX + 1)]
    async with a.running(), b.running():
        await a.writer.notify(changed=keys, unblocked=[X])
        assert (b.learner.changed, b.learner.unblocked) == (keys, [X])
        assert await b.applied() == 4


async def test_command_tells_members_without_being_one(url: str) -> None:
    a = ChangeNode(url, "a")
    session = make_session(url)
    writer = ChangeWriter(session, "command/1", timer=a.timer, sleep=asyncio.sleep)
    async with a.running():
        task = asyncio.create_task(session.run())
        await session.attempted.wait()
        await writer.notify(blocked=[X])
        assert a.learner.blocked == [X]
        assert set(a.membership.members) == {a.id}
        task.cancel()
        await asyncio.wait([task])


# --- members that are away


async def test_member_that_does_not_confirm_is_live_no_more_and_catches_up(url: str, hurried: None) -> None:
    del hurried
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        assert b.trust.holds
        b.learner.gate.clear()
        await a.writer.notify(blocked=[X])
        assert a.writer.expelled == 1
        assert await b.applied() == -1
        await a.writer.notify(blocked=[Y])  # at once: there is nothing to wait for
        b.learner.gate.set()
        await until(lambda: b.learner.blocked == [X, Y])
        await until(lambda: not b.trust.holds)  # the confirmation told it that its row is gone
        await b.membership.beat()
        assert not b.membership.is_joined
        await b.membership.join()
        assert b.trust.holds
        assert await b.applied() == 2
        assert b.learner.blocked == [X, Y]


async def test_late_member_suspends_its_caches_before_the_author_goes_on(url: str, hurried: None) -> None:
    del hurried
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        b.learner.gate.clear()  # as a bucket does that is slow to say whether a block is gone
        await a.writer.notify(blocked=[X])
        assert not b.trust.holds
        await b.membership.beat()
        assert not b.trust.holds


async def test_member_in_time_keeps_its_caches(url: str, hurried: None) -> None:
    del hurried
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        for _ in range(3):
            await a.writer.notify(blocked=[X])
        await asyncio.sleep(change_reader.LATE_AFTER_S)
        assert b.trust.holds


async def test_heartbeat_of_an_expelled_member_suspends_its_caches(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        await a.session.execute("DELETE FROM cluster_members WHERE id = %s", (b.id,))
        assert b.trust.holds
        await b.membership.beat()
        assert not b.trust.holds


async def test_dead_member_that_is_behind_is_not_waited_for(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        b.learner.gate.clear()
        await a.session.execute(
            "UPDATE cluster_members SET heartbeat_at = heartbeat_at - interval '16 s' WHERE id = %s", (b.id,)
        )
        await a.writer.notify(blocked=[X])
        assert a.writer.expelled == 1, "a late heartbeat has to find out"


async def test_changes_of_a_lost_session_are_applied_before_the_member_joins(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        b.learner.gate.clear()
        await lose_session(b, a)
        telling = asyncio.create_task(a.writer.notify(blocked=[X]))
        await until(b.reader._lock.locked)
        assert not b.trust.holds
        assert not b.membership.is_joined
        b.learner.gate.set()
        await telling
        await b.session.wait_connected()
        assert b.learner.blocked == [X]
        assert b.trust.holds


async def test_member_that_joins_during_a_removal_has_read_it(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running():

        async def write() -> None:
            await a.writer.notify(blocked=[X])  # B has read the rows, and has no row of its own: A does not wait

        b.membership.before_joining(write)
        async with b.running():
            assert b.membership.is_joined
            assert b.learner.blocked == [X]
            assert await b.applied() == 1


async def test_member_whose_next_change_is_gone_reads_everything_anew(url: str, hurried: None) -> None:
    del hurried
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        await a.writer.notify(changed=[K])
        b.reader._note_lost()  # as if no notification reached it
        await a.writer.notify(blocked=[X])
        await a.writer.notify(blocked=[Y])
        await a.session.execute("DELETE FROM cluster_changes WHERE id < 3")
        assert b.learner.read_anew == 1, "at its start"
        await b.membership.join()
        assert b.learner.read_anew == 2
        assert b.membership.applied == 3
        assert b.trust.holds


async def test_restored_database_makes_members_read_everything_anew(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        for _ in range(3):
            await a.writer.notify(blocked=[X])
        assert b.learner.read_anew == 1
        await a.session.execute("TRUNCATE cluster_changes RESTART IDENTITY")
        await lose_session(b, a)
        await b.session.wait_connected()
        assert b.learner.read_anew == 2
        assert b.membership.applied == 0
        await lose_session(a, b)
        await a.session.wait_connected()
        b.learner.gate.clear()
        telling = asyncio.create_task(a.writer.notify(blocked=[Y]))
        await until(b.reader._lock.locked)
        done, _ = await asyncio.wait([telling], timeout=0.05)
        assert not done, "what B has confirmed before says nothing of the new numbers"
        b.learner.gate.set()
        await telling


async def test_restored_database_that_has_gone_on_makes_members_read_everything_anew(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        await a.writer.notify(blocked=[X])
        await a.session.execute("TRUNCATE cluster_changes RESTART IDENTITY")
        b.reader._note_lost()  # as if B were the last one to connect
        write = "INSERT INTO cluster_changes (member, payload) SELECT %s, unnest(%s)"
        await a.session.execute(write, (a.id, encode(Notice(blocked=[Y])) * 2))
        await b.membership.join()
        assert b.learner.read_anew == 2
        assert b.membership.applied == 2


async def test_silent_database_ends_the_trust_in_caches(url: str) -> None:
    a = ChangeNode(url, "a")
    assert a.trust.holds, "until it has had the time to join"
    a.offset_s += STALE_MAX_S
    assert not a.trust.holds, "it has never joined"
    async with a.running():
        assert a.trust.holds
        a.offset_s += STALE_MAX_S
        assert not a.trust.holds
        await a.membership.beat()
        assert a.trust.holds


async def test_change_that_cannot_be_applied_is_not_confirmed(url: str, hurried: None) -> None:
    del hurried
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        b.learner.fault = StorageError("the disk is full")
        await a.writer.notify(blocked=[X])
        assert a.writer.expelled == 1
        assert not b.trust.holds
        b.learner.fault = None
        await until(lambda: b.learner.blocked == [X])


# --- without the database


async def test_without_the_database_a_removal_is_refused(url: str, postgresql: PostgresqlServer) -> None:
    a = ChangeNode(url, "a")
    async with a.running():
        postgresql.execute(f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS false")
        a.session._note_fault(a.session._fault)
        with pytest.raises(StorageError):
            await a.writer.notify(blocked=[X])
        with pytest.raises(StorageError):
            async with a.writer.exclusively(X):
                pass
        assert a.writer._unsent == Notice(), "no removal is carried out later, which nothing waits for"
        postgresql.execute(f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS true")
        await a.session.wait_connected()


async def test_replaced_record_is_told_once_the_database_is_back(url: str, postgresql: PostgresqlServer) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    name = url.rpartition("/")[2]
    async with a.running(), b.running():
        postgresql.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        a.session._note_fault(a.session._fault)
        with pytest.raises(StorageError):
            await a.writer.notify(changed=[K])
        settled = a.learner.settled
        postgresql.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await until(lambda: b.learner.changed == [K])
        assert a.learner.settled > settled, "the others look the record up in the database"


async def test_replaced_record_is_told_to_the_workers_of_the_machine_without_the_database(url: str) -> None:
    told: list[Key] = []

    class Local:
        async def notify(self, *, changed: Collection[Key] = (), **_what: object) -> None:
            told.extend(changed)

        def exclusively(self, _digest: Digest) -> AbstractAsyncContextManager[None]:
            raise AssertionError("nothing is removed")

    a = ChangeNode(url, "a")
    writer = ChangeWriter(a.session, "a/2", local=Local(), timer=a.timer, sleep=asyncio.sleep)
    with pytest.raises(StorageError):
        await writer.notify(changed=[K])
    assert told == [K]


async def test_missing_notifications_delay_changes_and_lose_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_reader, "HEARTBEAT_INTERVAL_S", 0.05)
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    b.session._listeners.clear()  # as a pooler between may have it
    async with a.running(), b.running():
        await a.writer.notify(blocked=[X])
        assert b.learner.blocked == [X]
        assert a.writer.expelled == 0


async def test_database_that_goes_away_does_not_suspend_caches_at_once(url: str, postgresql: PostgresqlServer) -> None:
    a = ChangeNode(url, "a")
    async with a.running():
        name = url.rpartition("/")[2]
        postgresql.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        a.session._note_fault(a.session._fault)
        a.reader._notified.set()
        await until(lambda: not a.reader._may_apply)
        assert a.trust.holds
        postgresql.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_too_many_unsent_changes_become_one(url: str) -> None:
    a = ChangeNode(url, "a")
    a.writer._keep(Notice(changed=[Key(f"{number:064x}") for number in range(UNSENT_MAX)]))
    assert not a.writer._unsent.everything
    a.writer._keep(Notice(changed=[K]))
    assert a.writer._unsent == Notice(everything=True)


async def test_crash_of_the_server_that_empties_unlogged_tables_loses_no_change(url: str) -> None:
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        await a.writer.notify(blocked=[X])
        await a.session.execute("TRUNCATE cluster_members, cluster_leases")
        await a.writer.notify(blocked=[Y])  # nothing is live
        await b.membership.beat()
        await b.membership.join()
        assert b.learner.blocked == [X, Y]
        await a.membership.beat()
        await a.membership.join()
        await b.writer.notify(unblocked=[Y])
        assert a.learner.unblocked == [Y]


async def test_end_of_a_process_leaves_no_author_waiting(url: str) -> None:
    a = ChangeNode(url, "a")
    async with a.running():
        lock = await psycopg.AsyncConnection.connect(url)
        await lock.execute("SELECT pg_advisory_lock(%s)", (CHANGE_LOCK,))
        telling = [asyncio.create_task(a.writer.notify(blocked=[digest])) for digest in (X, Y)]
        await until(lambda: a.writer._sending is not None)
        await a.writer.aclose()
        results = await asyncio.gather(*telling, return_exceptions=True)
        assert [type(result) for result in results] == [StorageError, StorageError]
        await lock.close()


# --- one at a time


async def test_removal_and_undo_of_a_digest_on_two_nodes_come_one_after_the_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_writer, "EXCLUSIVE_INTERVAL_S", 0.01)
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    order: list[str] = []
    async with a.running(), b.running():
        entered = asyncio.Event()

        async def undo() -> None:
            entered.set()
            async with b.writer.exclusively(X):
                order.append("undone")

        async with a.writer.exclusively(X):
            undoing = asyncio.create_task(undo())
            await entered.wait()
            async with b.writer.exclusively(Y):
                order.append("another digest")
            order.append("removed")
        await undoing
        assert order == ["another digest", "removed", "undone"]
        monkeypatch.setattr(change_writer, "EXCLUSIVE_TIMEOUT_S", 0)
        async with a.writer.exclusively(X):
            with pytest.raises(Busy):
                async with b.writer.exclusively(X):
                    pass


async def test_lock_of_a_removal_outlives_no_slow_statement(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_writer, "UNLOCK_TIMEOUT_S", 0.01)
    a, b = ChangeNode(url, "a"), ChangeNode(url, "b")
    async with a.running(), b.running():
        async with a.writer.exclusively(X):
            slow = asyncio.create_task(a.session.execute("SELECT pg_sleep(0.2)"))
            await asyncio.sleep(0)
        async with b.writer.exclusively(X):
            pass
        with suppress(StorageError):
            await slow


async def test_two_authors_at_once_write_in_the_order_of_commits(url: str) -> None:
    a, b, c = ChangeNode(url, "a"), ChangeNode(url, "b"), ChangeNode(url, "c")
    async with a.running(), b.running(), c.running():
        await asyncio.gather(*(node.writer.notify(blocked=[X, Y]) for node in (a, b) for _ in range(20)))
        assert set(c.learner.blocked) == {X, Y}
        rows = await a.session.execute("SELECT max(id) FROM cluster_changes")
        await until(lambda: all(node.membership.applied == rows[0][0] for node in (a, b, c)))


# --- old rows and other versions


async def test_old_rows_are_deleted_except_for_the_last_one(url: str) -> None:
    a = ChangeNode(url, "a")
    async with a.running():
        for _ in range(3):
            await a.writer.notify(blocked=[X])
        await a.session.execute("UPDATE cluster_changes SET at = at - interval '2 hours'")
        task = asyncio.create_task(a.reader.clean_up())

        async def is_clean() -> bool:
            return await a.session.execute("SELECT id FROM cluster_changes") == [(3,)]

        await until(is_clean)
        task.cancel()
        await asyncio.wait([task])


async def test_change_of_another_version_makes_a_member_read_everything_anew(url: str) -> None:
    a = ChangeNode(url, "a")
    async with a.running():
        assert a.learner.read_anew == 1
        await a.session.execute(
            "INSERT INTO cluster_changes (member, payload) VALUES ('new/1', %s)", (b"\xc1 no message pack",)
        )
        await a.session.execute("SELECT pg_notify('imgkeep_changes', '')")
        await until(lambda: a.learner.read_anew == 2)
        future = msgspec.msgpack.encode({"changed": [K], "unheard_of": 1})
        assert decode(future) == Notice(changed=[K]), "a new field is no other form"


def test_merged_notices_have_each_name_once_in_order() -> None:
    z = Digest("z" * 64)
    merged = merge([Notice(blocked=[X, Y]), Notice(blocked=[z, X], changed=[K]), Notice(unblocked=[z])])
    assert merged == Notice([X, Y, z], [K], {}, [z])
    assert [decode(part) for part in encode(merged)] == [merged]
