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
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def has_exact_byte_products() -> bool:
    """Whether products of uint8 and int8 are summed in 32 bits. On x86 without VNNI or AMX pairs of them are summed in
    16 bits first, which saturate."""
    if platform.machine() not in ("x86_64", "AMD64", "i686"):
        return True
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(_cpuinfo("flags").split())


def _cpuinfo(field: str) -> str:
    """The first processor's `field` in /proc/cpuinfo, "" where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == field:
                    return value.strip()
    except OSError:
        pass
    return ""
