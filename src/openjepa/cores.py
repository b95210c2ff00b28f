"""How many processor cores there are to work with."""

import math
import os
from contextlib import suppress
from pathlib import Path

# A container's share, where it has one (cgroup v2): microseconds of computing in so many.
_SHARE = Path("/sys/fs/cgroup/cpu.max")


def cores(*, alone: bool = False) -> int:
    """Cores that this process may use: of those that the system lets it have its part under torchrun, where one runs
    for each GPU of a machine, or all of them while it works ``alone`` and the others wait."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = _SHARE.read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))  # "max" is no number
    return max(1, count if alone else count // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
