"""Inference engines behind one small protocol, and the choice among them."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from glia_rt.bundle import Bundle, Input
from glia_rt.errors import BackendError, EngineError, MissingPackageError, UsageError

# Fastest first. Each is a module, or an object in one, with open(bundle, options), unavailable() and
# default_precision().
GPU_BACKENDS: Final = {
    "tensorrt": "glia_rt.backends.tensorrt:TENSORRT",
    "tensorrt-rtx": "glia_rt.backends.tensorrt:RTX",
    "onnxruntime-cuda": "glia_rt.backends.onnxruntime_cuda",
}
CPU_BACKENDS: Final = {
    "openvino": "glia_rt.backends.openvino",
    "onnxruntime": "glia_rt.backends.onnxruntime",
}
#: Every backend, fastest first; `auto` takes the first that works here.
BACKENDS: Final = GPU_BACKENDS | CPU_BACKENDS
AUTO: Final = "auto"
#: Pictures a run on a CPU: more are no faster, and a single picture pays for a whole batch.
CPU_BATCH_SIZE: Final = 4


@dataclass(frozen=True)
class BackendOptions:
    """How to open a backend.

    Attributes:
        input: "views" or "image": which graph to run.
        precision: "fp32", "fp16" or "bf16"; None for the backend's default on this machine.
        batch_size: Pictures in most calls of `run`: what to be ready for; None for the backend's default.
        device: Which GPU, by index; None for the first. A backend on the CPU takes None alone.
    """

    input: Input = "views"
    precision: str | None = None
    batch_size: int | None = None
    device: int | None = None


class Backend(Protocol):
    """A loaded graph. `run` may be called from several threads at once.

    Attributes:
        name: Its key in `BACKENDS`.
        precision: What it computes in.
        library: What computes, and its version: "openvino 2026.4.1".
        device: What it runs on: "cpu", or "cuda:0 (NVIDIA L4)".
        device_type: That without a number: "cpu", or the GPU's name.
        batch_size: Pictures in most calls of `run`.
        parallel: How many calls of `run` it works on at once; more than that wait.
    """

    name: str
    precision: str
    library: str
    device: str
    device_type: str
    batch_size: int
    parallel: int

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Score a batch.

        Args:
            inputs: By the contract's input names: `global_view` and `fragments`, uint8 (N, 224, 224, 3), or `image`,
                uint8 (N, H, W, 3). Any N; a new N or size may cost a compilation.

        Returns:
            float32 (N,).

        Raises:
            BackendError: The engine failed.
        """

    def close(self) -> None:
        """Free what it holds; it cannot be run again."""


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> tuple[Backend, list[str]]:
    """Load a bundle's graph.

    Args:
        name: A key of `BACKENDS`, which is then taken or fails, or "auto".
        bundle: What to load.
        options: How.

    Returns:
        The backend, and why "auto" passed over each faster one.

    Raises:
        BackendError: The named backend, or with "auto" every backend, cannot be used here.
        UsageError: No such backend.
        BundleError: The bundle's file is not the one that was exported; or EngineError, of a named backend's engine.
    """
    if name != AUTO:
        if name not in BACKENDS:
            raise UsageError(f"no backend {name!r}; there are {AUTO}, {', '.join(BACKENDS)}")
        if reason := unavailable(name):
            raise BackendError(f"backend {name}: {reason}")
        backend: Backend = _module(name).open(bundle, options)
        return backend, []
    passed_over: list[str] = []
    for candidate in BACKENDS if options.device is None else GPU_BACKENDS:
        reason = unavailable(candidate)
        if reason is None:
            try:
                return _module(candidate).open(bundle, options), passed_over
            except (BackendError, EngineError) as error:
                reason = str(error)
        passed_over.append(f"{candidate}: {reason}")
    if options.device is not None:
        passed_over.append("without --device the CPU is taken")
    raise BackendError("no backend works here. " + "; ".join(passed_over))


def unavailable(name: str) -> str | None:
    """Why a backend cannot be used on this machine, as a sentence that says what to do; None if it can."""
    reason: str | None = _module(name).unavailable()
    return reason


def default_precision(name: str) -> str:
    """What a backend computes in on this machine unless told otherwise, for pictures sampled on the host."""
    return str(_module(name).default_precision())


def why_not_importable(package: str, extra: str) -> str | None:
    """Why a backend's package, or a module of it, cannot be imported, and what to do about it; None if it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (package, package.partition(".")[0]):
            return str(MissingPackageError(package, extra))
        return f"{package} is installed but cannot be imported ({' '.join(str(error).split())}): install it again"
    return None


def cache_folder(*names: str) -> Path | None:
    """A folder in the user's cache for what was compiled here; made if it is not there.

    Never in the bundle, which may be shared and read-only. None where the user has no folder that can be written, as in
    many a container: it is then compiled each time.
    """
    from platformdirs import user_cache_path

    folder = user_cache_path("glia-rt", appauthor=False).joinpath(*names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def refuse_device(name: str, options: BackendOptions) -> None:
    """For backends on the CPU: raise BackendError if a GPU was asked for."""
    if options.device is not None:
        raise BackendError(f"backend {name} runs on the CPU; --device is for GPUs")


def _module(name: str) -> Any:
    return pkgutil.resolve_name(BACKENDS[name])
