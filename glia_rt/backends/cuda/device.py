"""NVIDIA GPUs: whether there is a driver, and which GPUs it knows.

These are the first facts to know about a machine. This module asks the driver's own library for them, so it works
before any other package is installed.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

from glia_rt.errors import BackendError

#: The version of CUDA that all packages here are built for.
CUDA: Final = 13
#: The oldest driver that supports CUDA 13.
LEAST_DRIVER: Final = 580

_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_CAPABILITY_MAJOR: Final = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_CAPABILITY_MINOR: Final = 76


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        index: Number of the GPU, as `--device` takes it.
        name: Name of the GPU, for example "NVIDIA GeForce RTX 4090".
        capability: Compute capability, for example "8.9".
        cuda: Version of CUDA that the driver supports, for example "13.0".
    """

    index: int
    name: str
    capability: str
    cuda: str

    @classmethod
    def open(cls, index: int) -> Gpu:
        """Return the GPU of this number.

        Raises:
            BackendError: There is no GPU of this number.
        """
        gpus = list_gpus()
        if not 0 <= index < len(gpus):
            names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
            raise BackendError(f"no GPU {index} here; there are {names}")
        return gpus[index]


def list_gpus() -> list[Gpu]:
    """Return all GPUs that the driver knows. There is at least one.

    Raises:
        BackendError: There is no driver, the driver is too old, or there is no GPU. The message says what to do.
    """
    driver = _driver()
    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        raise BackendError(
            "there is an NVIDIA driver but no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES; "
            "a container needs --gpus all"
        )
    if status:
        raise BackendError(f"the NVIDIA driver does not start (cuInit gives {status}): see nvidia-smi")
    version = _ask(driver.cuDriverGetVersion)
    if version < CUDA * 1000:
        raise BackendError(
            f"the NVIDIA driver knows CUDA {_version(version)}, {CUDA} is needed: "
            f"install driver {LEAST_DRIVER} or later"
        )
    gpus = []
    for index in range(_ask(driver.cuDeviceGetCount)):
        device = _ask(driver.cuDeviceGet, index)
        name = ctypes.create_string_buffer(256)
        _check(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
        major, minor = (_ask(driver.cuDeviceGetAttribute, a, device) for a in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
        gpus.append(Gpu(index, name.value.decode(), f"{major}.{minor}", _version(version)))
    return gpus


def why_no_gpu() -> str | None:
    """Return why no GPU can be used on this machine and what to do about it; None if one can."""
    try:
        list_gpus()
    except BackendError as error:
        return str(error)
    return None


def _driver() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise BackendError(f"no NVIDIA driver: a GPU needs driver {LEAST_DRIVER} or later (CUDA {CUDA})") from error


def _ask(function: Any, *arguments: int) -> int:
    answer = ctypes.c_int()
    _check(function(ctypes.byref(answer), *arguments), function.__name__)
    return answer.value


def _check(status: int, what: str) -> None:
    if status:
        raise BackendError(f"the NVIDIA driver fails ({what} gives {status}): see nvidia-smi")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
