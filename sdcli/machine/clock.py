"""Seconds since this process started, its own start-up included."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path


@functools.cache
def started() -> float:
    """When it started, on time.monotonic's scale: as the kernel recorded it, else the time of the first call."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = float(Path("/proc/uptime").read_text().split()[0])
        return time.monotonic() - (since_boot - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


def since_start() -> float:
    return max(0.0, time.monotonic() - started())
