"""How and when a worker misbehaves. Pure: decides which fault befalls what is about to be written, and does nothing.

A fault stands until another is set; a *strike* waits for so many more events, breaks the one stream that would send
the next, and is gone.
"""

from enum import StrEnum


class Fault(StrEnum):
    """How a worker misbehaves, on the routes that serve requests; /health answers 200 except under `DEAD`.

    Those that break replies leave a stream that has begun alone until its next event.
    """

    NONE = "none"
    ERROR = "error"  # 500 at once
    DRAIN = "drain"  # running requests go on, new ones get vLLM's 500 of a server that is shutting down
    SLOW = "slow"  # the worker's time runs at a tenth of its pace
    HANG = "hang"  # requests are read and never answered, and streams fall silent for ever; connections stay open
    CUT = "cut"  # the connection drops
    RESET = "reset"  # the connection is reset (RST)
    TRUNCATE = "truncate"  # half an event, or half a body, and the connection closes
    GARBAGE = "garbage"  # bytes that are neither a chunk nor a reply, and then silence
    DEAD = "dead"  # the engine died: streams get an error event and a clean [DONE], others 500, /health 503


BREAKING = frozenset((Fault.HANG, Fault.CUT, Fault.RESET, Fault.TRUNCATE, Fault.GARBAGE, Fault.DEAD))


class Faults:
    """The fault that stands, and the strike that is to come. Events of all streams of the worker count."""

    __slots__ = ("_strike", "_strike_events", "fault", "is_quiet")

    def __init__(self, fault: Fault) -> None:
        self.set(fault, None)

    def set(self, fault: Fault, after_events: int | None) -> None:
        """Let a fault stand, or strike once after that many events; either takes back what was set before.

        Raises ValueError for a strike of a fault that breaks no stream.
        """
        if after_events is not None and (fault not in BREAKING or after_events < 0):
            raise ValueError(f"after_events={after_events}: must be at least 0, and {fault.value} must break streams")
        self._strike = Fault.NONE if after_events is None else fault
        self._strike_events = after_events or 0
        self.fault = fault if after_events is None else Fault.NONE
        self.is_quiet = fault not in BREAKING

    def befall(self, events: int) -> tuple[Fault, int]:
        """What befalls a stream that is about to write so many events, and how many of them come through."""
        if self.fault in BREAKING:
            return self.fault, 0
        if self._strike is Fault.NONE or events <= self._strike_events:
            self._strike_events -= events
            return Fault.NONE, events
        fault, through = self._strike, self._strike_events
        self.set(Fault.NONE, None)
        return fault, through
