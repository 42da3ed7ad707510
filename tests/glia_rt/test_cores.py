"""Cores within a container's quota, as Linux writes it down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glia_rt.cores import cpu_count

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{key}": text for key, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {"cpu.max": "100000 100000\n"}, 1, id="a container"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="half a core"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, BOUND, id="no quota"),
        pytest.param("0::/\n", {"cpu.max": "100000000 100000\n"}, BOUND, id="a quota of more cores than there are"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1, id="above"),
        pytest.param("0::/outside/name\n", {"cpu.max": "100000 100000\n"}, 1, id="called otherwise outside"),
        pytest.param("0::/../..\n", {"cpu.max": "100000 100000\n"}, 1, id="a group out of sight"),
        pytest.param(
            "5:memory:/\n4:cpu,cpuacct:/job\n0::/job\n",
            {"cpu/job/cpu.cfs_quota_us": "100000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            1,
            id="version 1",
        ),
        pytest.param(
            "4:cpuset:/x\n3:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            BOUND,
            id="version 1 without a quota",
        ),
        pytest.param("0::/\n", {}, BOUND, id="a controller that is off"),
    ],
)  # fmt: skip
def test_no_more_than_the_quota(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert cpu_count(system(tmp_path, groups, files)) == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert cpu_count(tmp_path) == BOUND


def test_rounds_up(tmp_path: Path) -> None:
    assert cpu_count(system(tmp_path, "0::/\n", {"cpu.max": "110000 100000\n"})) == min(2, BOUND)
