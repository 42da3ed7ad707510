"""What the driver says, asked in processes whose driver is the fixture's; this machine's own may be missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glia_rt.versions import install_command

GpuMachine = Callable[..., dict[str, str]]
GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]

LOOK = """
import dataclasses, json
from glia_rt.backends.cuda.device import list_gpus
from glia_rt.errors import GliaError
try:
    print(json.dumps([dataclasses.astuple(gpu) for gpu in list_gpus()]))
except GliaError as error:
    print(json.dumps([error.exit_status, str(error)]))
"""


def look(env: dict[str, str]) -> list[object]:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, env=env, check=True)
    found: list[object] = json.loads(done.stdout)
    return found


def test_gpus_are_listed(gpu_machine: GpuMachine) -> None:
    env = gpu_machine(("NVIDIA GeForce RTX 4090", 89), ("NVIDIA RTX PRO 6000", 120), cuda=13010)
    assert look(env) == [
        [0, "NVIDIA GeForce RTX 4090", "8.9", "13.1"],
        [1, "NVIDIA RTX PRO 6000", "12.0", "13.1"],
    ]


def test_no_gpu(gpu_machine: GpuMachine) -> None:
    status, message = look(gpu_machine(init=100))
    assert status == 6
    assert str(message).startswith("there is an NVIDIA driver but no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES")


def test_an_old_driver(gpu_machine: GpuMachine) -> None:
    status, message = look(gpu_machine(("NVIDIA L4", 89), cuda=12080))
    assert (status, message) == (6, "the NVIDIA driver knows CUDA 12.8, 13 is needed: install driver 580 or later")


def test_a_driver_that_does_not_start(gpu_machine: GpuMachine) -> None:
    status, message = look(gpu_machine(("NVIDIA L4", 89), init=999))
    assert (status, message) == (6, "the NVIDIA driver does not start (cuInit gives 999): see nvidia-smi")


def test_no_driver(tmp_path: Path) -> None:
    """Its library is there and is no library, which is how any machine can lack it."""
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    status, message = look(os.environ | {"LD_LIBRARY_PATH": str(tmp_path)})
    assert (status, message) == (6, "no NVIDIA driver: a GPU needs driver 580 or later (CUDA 13)")


@pytest.mark.parametrize("device", [1, 7])
def test_a_gpu_that_is_not_there(
    gpu_machine: GpuMachine, glia_rt_command: GliaRt, tiny_engine: Path, device: int
) -> None:
    args = ["verify", tiny_engine, "--backend", "tensorrt-rtx", "--device", str(device)]
    done = glia_rt_command(*args, env=gpu_machine(("NVIDIA L4", 89)))
    assert done.returncode == 6
    assert done.stderr == f"glia-rt: no GPU {device} here; there are 0 (NVIDIA L4)\n"


def test_doctor_lists_gpus(gpu_machine: GpuMachine, glia_rt_command: GliaRt) -> None:
    done = glia_rt_command("doctor", env=gpu_machine(("NVIDIA L4", 89)))
    assert done.returncode == 0, done.stderr
    assert "0    NVIDIA L4  8.9         13.0" in done.stdout
    works = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.split()[1:]}
    assert (works["tensorrt-rtx"], works["tensorrt"], works["onnxruntime-cuda"]) == ("yes", "no", "no")
    assert f"tensorrt is not installed: {install_command('tensorrt')}" in done.stdout
    assert "the onnxruntime that is installed is the CPU's" in done.stdout
