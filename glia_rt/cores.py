"""How many cores there are to compute on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cpu_count(system: Path = Path("/")) -> int:
    """Cores this process may use: those it is bound to, and no more than its container's CPU quota, rounded up.

    Engines and thread pools by themselves count the cores of the whole machine; in a container with a quota their
    threads would stop one another, and each would hold a picture.

    Args:
        system: The root of the file system, where Linux has control groups.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *(max(1, math.ceil(quota)) for quota in _quotas(system))])


def _quotas(system: Path) -> Iterator[float]:
    """Cores' worth of time that the process's control group, and each above it, may take; of versions 2 and 1."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # In a container its own group may stand at the top, whatever it is called outside.
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == top:
                break


def _quota(group: Path) -> Iterator[float]:
    """Microseconds of processor time a period, over the period; nothing where there is no limit ("max", or -1)."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return
    if quota.isdecimal():
        yield int(quota) / int(period)
