"""The table of a connection's states: complete, reachable, and without a way to break an order."""

from __future__ import annotations

import pytest

from imgkeep.web.fastpath.states import BUSY, TRANSITIONS, Event, State, next_state
from tests.support.tables import table

LEGAL = [(state, event, following) for state, events in TRANSITIONS.items() for event, following in events.items()]


@table(("state", "event", "following"), LEGAL)
def test_legal_event_leads_to_its_state(state: State, event: Event, following: State) -> None:
    assert next_state(state, event) is following


@pytest.mark.parametrize("state", State)
def test_any_other_event_is_a_mistake(state: State) -> None:
    for event in set(Event) - set(TRANSITIONS[state]):
        with pytest.raises(RuntimeError, match=event.value):
            next_state(state, event)


def test_every_state_is_reached_from_ready() -> None:
    reached, todo = {State.READY}, [State.READY]
    while todo:
        following = set(TRANSITIONS[todo.pop()].values()) - reached
        reached |= following
        todo += following
    assert reached == set(State)


def test_every_event_can_happen() -> None:
    assert {event for events in TRANSITIONS.values() for event in events} == set(Event)


def test_handed_over_ends_with_the_connection() -> None:
    assert TRANSITIONS[State.HANDED_OVER] == {Event.LOST: State.CLOSED}
    assert set(TRANSITIONS[State.CLOSED].values()) == {State.CLOSED}


def test_busy_connection_begins_no_other_request() -> None:
    begins = {Event.HEAD_CUT, Event.LOAD_STARTED, Event.HANDLER_STARTED, Event.FOLLOWED, Event.HANDED_OVER}
    assert all(not begins & set(TRANSITIONS[state]) for state in BUSY)
    # From a busy state the only ways lead on to the response, back to READY, or to the end.
    ways = {following for state in BUSY for following in TRANSITIONS[state].values()}
    assert ways == {State.SENDING, State.READY, State.CLOSED}


def test_only_ready_begins_a_request() -> None:
    begins = {Event.LOAD_STARTED, Event.HANDLER_STARTED, Event.FOLLOWED}
    assert [state for state in State if begins & set(TRANSITIONS[state])] == [State.READY]
