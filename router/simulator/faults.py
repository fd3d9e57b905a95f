"""Decides which fault hits the events that a worker is about to write. Pure: the worker carries the fault out.

A standing fault lasts until another one is set. A *strike* waits for a number of events, breaks the one stream that
would send the next event, and is over.
"""

from enum import StrEnum


class Fault(StrEnum):
    """A way to misbehave on the routes that serve requests. /health answers 200, except with `DEAD`.

    A fault that breaks replies hits a running stream at its next event.
    """

    NONE = "none"
    ERROR = "error"  # 500 at once
    DRAIN = "drain"  # running requests continue; new ones get the 500 of a vLLM server that is shutting down
    SLOW = "slow"  # the worker's clock runs at a tenth of its speed
    HANG = "hang"  # requests are read and never answered, streams send nothing more, connections stay open
    CUT = "cut"  # the connection drops
    RESET = "reset"  # the connection is reset (RST)
    TRUNCATE = "truncate"  # half an event, or half a body, then the connection closes
    GARBAGE = "garbage"  # bytes that are neither a chunk nor a reply, then nothing
    DEAD = "dead"  # the engine died: streams get an error event and a clean [DONE], others 500, /health 503


BREAKING = frozenset((Fault.HANG, Fault.CUT, Fault.RESET, Fault.TRUNCATE, Fault.GARBAGE, Fault.DEAD))


class Faults:
    """The standing fault and the coming strike. A strike counts the events of all streams of its worker."""

    __slots__ = ("_strike", "_strike_events", "fault", "is_quiet")

    def __init__(self, fault: Fault) -> None:
        self.set(fault, None)

    def set(self, fault: Fault, after_events: int | None) -> None:
        """Set a standing fault, or with `after_events` a strike. Either replaces the setting before.

        Raises ValueError if the fault of a strike breaks no stream.
        """
        if after_events is not None and (fault not in BREAKING or after_events < 0):
            raise ValueError(f"after_events={after_events}: must be at least 0, and {fault.value} must break streams")
        self._strike = Fault.NONE if after_events is None else fault
        self._strike_events = after_events or 0
        self.fault = fault if after_events is None else Fault.NONE
        self.is_quiet = fault not in BREAKING

    def befall(self, events: int) -> tuple[Fault, int]:
        """The fault of a stream that is about to write `events` events, and how many of them it still writes."""
        if self.fault in BREAKING:
            return self.fault, 0
        if self._strike is Fault.NONE or events <= self._strike_events:
            self._strike_events -= events
            return Fault.NONE, events
        fault, through = self._strike, self._strike_events
        self.set(Fault.NONE, None)
        return fault, through
