"""The states of a worker, as its supervisor sees them."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.cluster.workers.control import DRAIN, HEARTBEAT, KILL_TIMEOUT_S, READY
from imgkeep.cluster.workers.worker_info import WorkerInfo
from imgkeep.cluster.workers.worker_process import (
    LAST_TIMEOUT_S,
    TERMINATE_TIMEOUT_S,
    TRANSITIONS,
    WorkerEvent,
    WorkerProcess,
    WorkerState,
)
from imgkeep.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator


class FakeProcess:
    """A process that takes signals and never ends."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def poll(self) -> None:
        return None


@pytest.fixture
def control() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def worker_with(control: socket.socket, *, start_timeout_s: float = math.inf) -> WorkerProcess:
    process: Any = FakeProcess()
    info = WorkerInfo("0.1", 0, 2, "/nowhere", "secret")
    return WorkerProcess(info, process, control, Config(), now=0, start_timeout_s=start_timeout_s)


def test_table_names_every_state() -> None:
    assert TRANSITIONS.keys() == set(WorkerState)
    assert {new for row in TRANSITIONS.values() for new in row.values()} == set(WorkerState) - {WorkerState.STARTING}


def test_every_state_but_the_last_ends_with_the_control_socket() -> None:
    for state, row in TRANSITIONS.items():
        assert (WorkerEvent.CONTROL_CLOSED in row) == (state is not WorkerState.EXITING)


@pytest.mark.parametrize(
    ("events", "state", "deadline"),
    [
        ([], WorkerState.STARTING, 300),
        ([WorkerEvent.READY], WorkerState.READY, math.inf),
        ([WorkerEvent.READY, WorkerEvent.HEARTBEAT], WorkerState.READY, math.inf),
        ([WorkerEvent.TERMINATE, WorkerEvent.READY], WorkerState.DRAINING, 1 + KILL_TIMEOUT_S),
        ([WorkerEvent.READY, WorkerEvent.DRAIN], WorkerState.DRAINING, 2 + KILL_TIMEOUT_S),
        ([WorkerEvent.READY, WorkerEvent.DRAIN, WorkerEvent.TERMINATE], WorkerState.DRAINING, 2 + KILL_TIMEOUT_S),
        ([WorkerEvent.READY, WorkerEvent.HEARTBEAT_MISSED], WorkerState.UNRESPONSIVE, 2 + TERMINATE_TIMEOUT_S),
        (
            [WorkerEvent.READY, WorkerEvent.HEARTBEAT_MISSED, WorkerEvent.HEARTBEAT],
            WorkerState.DRAINING,
            3 + KILL_TIMEOUT_S,
        ),
        ([WorkerEvent.READY, WorkerEvent.CONTROL_CLOSED], WorkerState.EXITING, 2 + LAST_TIMEOUT_S),
        (
            [WorkerEvent.READY, WorkerEvent.CONTROL_CLOSED, WorkerEvent.TERMINATE],
            WorkerState.EXITING,
            2 + LAST_TIMEOUT_S,
        ),
    ],
)
def test_events_lead_to_states_with_deadlines(
    control: tuple[socket.socket, socket.socket], events: list[WorkerEvent], state: WorkerState, deadline: float
) -> None:
    worker = worker_with(control[0], start_timeout_s=300)
    for now, event in enumerate(events, 1):
        worker.handle(event, now)
    assert (worker.state, worker.deadline) == (state, deadline)


def test_end_of_the_control_socket_grants_no_more_time(control: tuple[socket.socket, socket.socket]) -> None:
    worker = worker_with(control[0])
    worker.handle(WorkerEvent.DRAIN, 0)
    worker.handle(WorkerEvent.CONTROL_CLOSED, KILL_TIMEOUT_S - 1)
    assert worker.deadline == KILL_TIMEOUT_S


def test_heartbeats_are_missed_by_a_ready_worker_alone(control: tuple[socket.socket, socket.socket]) -> None:
    worker = worker_with(control[0])
    assert not worker.misses_heartbeat(1000, 30)
    worker.handle(WorkerEvent.READY, 1000)
    assert not worker.misses_heartbeat(1030, 30)
    assert worker.misses_heartbeat(1031, 30)
    worker.handle(WorkerEvent.HEARTBEAT, 1031)
    assert not worker.misses_heartbeat(1061, 30)
    worker.excuse(1070)
    assert not worker.misses_heartbeat(1100, 30)
    worker.handle(WorkerEvent.DRAIN, 1100)
    assert not worker.misses_heartbeat(9999, 30)


def test_messages_are_read_in_order_and_unknown_ones_are_skipped(
    control: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = control
    worker = worker_with(ours)
    theirs.send(READY + b"?" + HEARTBEAT)
    assert worker.read() == [WorkerEvent.READY, WorkerEvent.HEARTBEAT]
    worker.drain(0)
    assert theirs.recv(9) == DRAIN
    theirs.close()
    assert worker.read() == [WorkerEvent.CONTROL_CLOSED]
