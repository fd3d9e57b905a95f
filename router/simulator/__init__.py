"""A fleet of workers that behave as vLLM does, without a GPU: prefix cache, queue, chunked prefill, metrics, faults.

It imports no other room, so that tests of the router can rely on it.
"""

from router.simulator.faults import Fault
from router.simulator.fleet import SimulatedFleet, start_fleet
from router.simulator.settings import SimulatorSettings

__all__ = ["Fault", "SimulatedFleet", "SimulatorSettings", "start_fleet"]
