"""
The states of a connection on the fast path, and the events that move it from one to the next.

A connection is in one state at a time, and `TRANSITIONS` holds everything that can happen to it (h11 `_state.py` is the
model):

    READY --part of a head--> READING_HEAD --more bytes--> READY
    READY --aiohttp is busy--> WAITING --next iteration of the loop--> READY
    READY --load of a cached body--> LOADING --loaded--> READY
    READY --handler--> HANDLING --response--> SENDING --sent--> READY
    READY --shared response--> FOLLOWING --response--> SENDING
    READY, READING_HEAD, WAITING --hand-over--> HANDED_OVER
    any --connection lost--> CLOSED

Rules:
- A request begins in READY alone, and only while aiohttp waits for one. So no response gets ahead of an earlier one.
- A cached response that is written at once leaves the connection READY, and so does a whole request without a body that
  aiohttp answers.
- HANDED_OVER ends with the connection. Once aiohttp was given bytes that are not certainly one whole request without a
  body, only aiohttp knows where a request ends (RFC 9112, 11.2).
- In a busy state (`BUSY`) later bytes wait, within limits.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """The state of a connection: it decides what happens to the next byte."""

    READY = "ready"
    """The next byte begins a request."""
    READING_HEAD = "reading head"
    """A part of a head has arrived, and the rest belongs to it."""
    WAITING = "waiting"
    """A whole request waits until aiohttp has finished the one before it."""
    LOADING = "loading"
    """The bytes of a cached response are on their way into memory."""
    HANDLING = "handling"
    """A handler works on the request."""
    FOLLOWING = "following"
    """The request waits for the response of a handler that works for another connection."""
    SENDING = "sending"
    """The response is being written, as quickly as the client reads."""
    HANDED_OVER = "handed over"
    """All bytes are aiohttp's."""
    CLOSED = "closed"
    """The client or the server has closed the connection."""


class Event(Enum):
    """An event of a connection."""

    HEAD_CUT = "head cut"
    """The bytes end within a head."""
    BYTES_ARRIVED = "bytes arrived"
    AIOHTTP_BUSY = "aiohttp busy"
    LOOP_ITERATED = "loop iterated"
    """The event loop has run once more."""
    LOAD_STARTED = "load started"
    LOADED = "loaded"
    HANDLER_STARTED = "handler started"
    FOLLOWED = "followed"
    """The request has joined a shared response."""
    RESPONSE_READY = "response ready"
    NO_RESPONSE = "no response"
    """The handler has none, because its client has left; or the shared response is its leader's alone."""
    SENT = "sent"
    HANDED_OVER = "handed over"
    """Bytes arrived that are not certainly one whole request without a body; or the fast path was switched off."""
    LOST = "lost"


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.READY: {
        Event.HEAD_CUT: State.READING_HEAD,
        Event.AIOHTTP_BUSY: State.WAITING,
        Event.LOAD_STARTED: State.LOADING,
        Event.HANDLER_STARTED: State.HANDLING,
        Event.FOLLOWED: State.FOLLOWING,
        Event.HANDED_OVER: State.HANDED_OVER,
        Event.LOST: State.CLOSED,
    },
    State.READING_HEAD: {
        Event.BYTES_ARRIVED: State.READY,
        Event.HANDED_OVER: State.HANDED_OVER,
        Event.LOST: State.CLOSED,
    },
    State.WAITING: {
        Event.LOOP_ITERATED: State.READY,
        Event.HANDED_OVER: State.HANDED_OVER,
        Event.LOST: State.CLOSED,
    },
    State.LOADING: {Event.LOADED: State.READY, Event.LOST: State.CLOSED},
    State.HANDLING: {
        Event.RESPONSE_READY: State.SENDING,
        Event.NO_RESPONSE: State.READY,
        Event.LOST: State.CLOSED,
    },
    State.FOLLOWING: {
        Event.RESPONSE_READY: State.SENDING,
        Event.NO_RESPONSE: State.READY,
        Event.LOST: State.CLOSED,
    },
    State.SENDING: {Event.SENT: State.READY, Event.LOST: State.CLOSED},
    State.HANDED_OVER: {Event.LOST: State.CLOSED},
    # Work that was under way when the connection was lost still ends.
    State.CLOSED: dict.fromkeys((Event.LOADED, Event.RESPONSE_READY, Event.NO_RESPONSE, Event.SENT), State.CLOSED),
}

BUSY: Final = frozenset({State.LOADING, State.HANDLING, State.FOLLOWING, State.SENDING})
"""States in which a request is being answered."""


def next_state(state: State, event: Event) -> State:
    """
    Return the state after an event.

    Raises:
        RuntimeError: The event cannot happen in that state: a mistake of this program.
    """
    following = TRANSITIONS[state].get(event)
    if following is None:
        raise RuntimeError(f"a connection that is {state.value} has no event {event.value}")
    return following
