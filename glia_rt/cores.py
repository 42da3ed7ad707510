"""The number of cores that there are to compute on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cpu_count(system: Path = Path("/")) -> int:
    """Return the number of cores this process may use.

    These are the cores that the process is bound to, but no more than the CPU quota of its container, rounded up.
    Engines and thread pools by themselves count the cores of the whole machine. In a container with a quota, that many
    threads would stop one another, and each would hold a picture.

    Args:
        system: The root of the file system, where Linux has control groups.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *(max(1, math.ceil(quota)) for quota in _quotas(system))])


def _quotas(system: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of the process's control group and of each group above it, of versions 2 and 1."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # In a container, the process's own group may stand at the top, whatever it is called outside.
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == top:
                break


def _quota(group: Path) -> Iterator[float]:
    """Yield the quota of a group in cores; nothing if it has no limit ("max", or -1).

    The quota is the processor time a period, over the period, both in microseconds.
    """
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return
    if quota.isdecimal():
        yield int(quota) / int(period)
