"""Cores and memory within a container's limits, as Linux writes them down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glia_rt.machine import cpu_count, instruction_set, memory_left, memory_size

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


def test_the_instruction_set_tells_processors_of_one_name_apart(tmp_path: Path) -> None:
    cpuinfo = "processor\t: {}\nmodel name\t: Intel(R) Xeon(R) Processor\ncpu MHz\t\t: {}\nflags\t\t: {}\n\n"

    def name(flags: str, megahertz: int = 2000) -> str:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/cpuinfo").write_text("".join(cpuinfo.format(i, megahertz, flags) for i in range(2)))
        return instruction_set(tmp_path)

    with_amx = name("fpu avx512f amx_tile")
    assert name("fpu avx512f") != with_amx
    assert name("amx_tile fpu avx512f", 3000) == with_amx
    assert instruction_set(tmp_path / "not Linux") == instruction_set(tmp_path / "not Linux")


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


PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {"memory.max": "1000000\n"}, 1_000_000, id="a container"),
        pytest.param("0::/\n", {"memory.max": "max\n", "memory.high": "900000\n"}, 900_000, id="throttled"),
        pytest.param("0::/\n", {"memory.max": "max\n"}, PHYSICAL, id="no limit"),
        pytest.param("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000000\n"}, 1_000_000, id="above"),
        pytest.param("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "1000000\n"}, 1_000_000, id="version 1"),
        pytest.param("4:memory:/\n", {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, PHYSICAL, id="none in it"),
        pytest.param("0::/\n", {}, PHYSICAL, id="a controller that is off"),
    ],
)  # fmt: skip
def test_no_more_than_the_limit_of_memory(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert memory_size(system(tmp_path, groups, files)) == expected


def test_what_the_process_holds_is_not_left(tmp_path: Path) -> None:
    container = system(tmp_path, "0::/\n", {"memory.max": "1000000\n"})
    assert memory_left(container) == 1_000_000
    (container / "proc/self/status").write_text("Name:\tray::score\nRssAnon:\t     100 kB\nThreads:\t1\n")
    assert memory_left(container) == 1_000_000 - 102_400
    assert 0 < memory_left() < memory_size()
