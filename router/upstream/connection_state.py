"""The states of one connection to a worker, and the table of events that move it from one to the next. Pure.

    IDLE ─► HEAD ─► WHOLE ─► IDLE                     a reply that is held until it is complete
               └──► EVENTS ─► RELAY ─► TAIL ─► IDLE   a stream

DONE, FAILED and ABORTED are final: the connection is closed or closing, and nothing moves it any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class State(Enum):
    __hash__ = object.__hash__  # members are singletons; Enum's own is a Python call

    IDLE = auto()
    """No request is on the connection."""
    HEAD = auto()
    """The request is sent; the reply's head is not complete."""
    WHOLE = auto()
    """The body of a reply that is not a stream is being read."""
    EVENTS = auto()
    """The first events of a stream are read; no client gets them yet."""
    RELAY = auto()
    """The stream flows to a client."""
    TAIL = auto()
    """The client has the whole stream; the worker's last chunk is missing."""
    DONE = auto()
    """The reply is complete, and the connection cannot serve another one."""
    FAILED = auto()
    """The worker failed before its reply was complete."""
    ABORTED = auto()
    """The client or the owner left, or the connection was closed while idle."""


class Event(Enum):
    __hash__ = object.__hash__  # members are singletons; Enum's own is a Python call

    ASK = auto()
    WHOLE_HEAD = auto()
    STREAM_HEAD = auto()
    RELAY = auto()
    CLOSING_EVENT = auto()
    END_CLEAN = auto()
    """The reply ends, and the connection can serve another one."""
    END = auto()
    """The reply ends, and the connection must be closed."""
    FAIL = auto()
    ABORT = auto()


_ENDED_EARLY = {Event.FAIL: State.FAILED, Event.ABORT: State.ABORTED}

TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.IDLE: {Event.ASK: State.HEAD, Event.ABORT: State.ABORTED},
    State.HEAD: {Event.WHOLE_HEAD: State.WHOLE, Event.STREAM_HEAD: State.EVENTS, **_ENDED_EARLY},
    State.WHOLE: {Event.END_CLEAN: State.IDLE, Event.END: State.DONE, **_ENDED_EARLY},
    State.EVENTS: {Event.RELAY: State.RELAY, Event.END: State.DONE, **_ENDED_EARLY},
    State.RELAY: {Event.CLOSING_EVENT: State.TAIL, **_ENDED_EARLY},
    State.TAIL: {
        Event.END_CLEAN: State.IDLE,
        Event.END: State.DONE,
        Event.FAIL: State.DONE,
        Event.ABORT: State.DONE,
    },
    State.DONE: dict.fromkeys(Event, State.DONE),
    State.FAILED: dict.fromkeys(Event, State.FAILED),
    State.ABORTED: dict.fromkeys(Event, State.ABORTED),
}
"""An event that a state does not list is a defect of this router: a KeyError."""
