"""CPU time of a router, as the kernel accounts it: every thread of every process that it consists of.

Read from ``/proc/PID/task/*/schedstat``, in nanoseconds. ``/proc/PID/stat`` has the same sum with threads that have
ended, but in ticks of 10 ms; it is used where a thread came to an end between two readings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class CpuReading:
    by_thread_ns: dict[int, int]
    by_process_s: dict[int, float]

    def seconds_since(self, earlier: CpuReading) -> float:
        """CPU seconds between two readings. Raises RuntimeError when a process ended: its time is lost."""
        if lost := earlier.by_process_s.keys() - self.by_process_s.keys():
            raise RuntimeError(f"processes {sorted(lost)} ended while they were measured")
        if earlier.by_thread_ns.keys() - self.by_thread_ns.keys():
            return sum(self.by_process_s.values()) - sum(earlier.by_process_s.values())
        return (sum(self.by_thread_ns.values()) - sum(earlier.by_thread_ns.values())) / 1e9


def read_cpu(pid: int) -> CpuReading:
    """The process ``pid`` and everything below it."""
    root = psutil.Process(pid)
    by_thread: dict[int, int] = {}
    by_process: dict[int, float] = {}
    for process in (root, *root.children(recursive=True)):
        by_process[process.pid] = _stat_seconds(process.pid)
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            by_thread[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return CpuReading(by_thread, by_process)


def _stat_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
