"""Load from a trace: sends each request at the time in the trace and reports how the fleet served it.

It decides nothing about routing and imports no other room. It knows a router by its URL only, as any client does.
"""

from router.replay.report import ReplayReport, Spread
from router.replay.run import ReplaySettings, replay
from router.replay.trace import ReplayError, TraceRow, read_trace

__all__ = ["ReplayError", "ReplayReport", "ReplaySettings", "Spread", "TraceRow", "read_trace", "replay"]
