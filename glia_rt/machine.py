"""What there is to compute with: the cores and the memory of the machine, or of the container."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def cpu_count(system: Path = _ROOT) -> int:
    """Return the number of cores this process may use.

    These are the cores that the process is bound to, but no more than the CPU quota of its container, rounded up.
    Engines and thread pools by themselves count the cores of the whole machine. In a container with a quota, that many
    threads would stop one another, and each would hold a picture.

    Args:
        system: The root of the file system, where Linux has control groups.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (quota for group in _groups(system, "cpu") for quota in _quota(group))
    return min([bound, *(max(1, math.ceil(quota)) for quota in quotas)])


def instruction_set(system: Path = _ROOT) -> str:
    """Return a short name for the instructions that the processor has.

    Processors of one name may differ in them: the name that a virtual machine gives is often "Intel Xeon Processor".

    Args:
        system: As for `cpu_count`.
    """
    try:
        text = (system / "proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^(flags|Features)\s*:(.*)$", text, re.MULTILINE)
    names = sorted(found[2].split()) if found else [platform.machine(), platform.processor()]
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def memory_size(system: Path = _ROOT) -> int:
    """Return the memory that this process may use, in bytes: the machine's, but no more than its container's limit.

    Args:
        system: As for `cpu_count`.
    """
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows
        physical = 8 << 30
    return min([physical, *(limit for group in _groups(system, "memory") for limit in _limit(group))])


def memory_left(system: Path = _ROOT) -> int:
    """Return the memory that this process may take beyond what it holds now, in bytes.

    Other processes may hold some of it.

    Args:
        system: As for `cpu_count`.
    """
    try:
        status = (system / "proc/self/status").read_text()
    except OSError:  # not Linux
        status = ""
    # Without the files that are mapped into memory, such as libraries, which the system may drop.
    found = re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE)
    return max(0, memory_size(system) - 1024 * int(found[1] if found else 0))


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's control group and of each group above it, of versions 2 and 1."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = system / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container, the process's own group may stand at the top, whatever it is called outside.
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            yield folder
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


def _limit(group: Path) -> Iterator[int]:
    """Yield the limits of a group in bytes. Version 1 writes a number that no machine has where there is none."""
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        try:
            limit = (group / name).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal() and int(limit):
            yield int(limit)
