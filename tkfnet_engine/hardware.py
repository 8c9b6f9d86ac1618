"""What this process runs on: usable processors and their name."""

from __future__ import annotations

import math
import os
import platform

_CGROUP_LIMIT = "/sys/fs/cgroup/cpu.max"


def usable_cores() -> int:
    """Processors this process may keep busy: its affinity, and a container's quota (cgroup v2) if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(_CGROUP_LIMIT) as file:
            quota, period = file.read().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def processor_name() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
