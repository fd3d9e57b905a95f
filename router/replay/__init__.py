"""Load from a trace: sends every request when the trace says, and reports what the fleet made of it.

Decides nothing about routing and imports no other room: a router is a URL here, as for any client.
"""

from router.replay.report import ReplayReport, Spread
from router.replay.run import ReplaySettings, replay
from router.replay.trace import ReplayError, TraceRow, read_trace

__all__ = ["ReplayError", "ReplayReport", "ReplaySettings", "Spread", "TraceRow", "read_trace", "replay"]
