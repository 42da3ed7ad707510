"""The protocol of an inference engine, the options it is opened with, and what every engine needs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from glia_rt.contract import GraphKind
from glia_rt.errors import BackendError, MissingPackageError

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

    input: GraphKind = "views"
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
            inputs: By input name: those of the contract, uint8 (N, *shape), or `image`, uint8 (N, H, W, 3). Any N; a
                new N or size may cost a compilation.

        Returns:
            float32 (N,).

        Raises:
            BackendError: The engine failed.
        """

    def close(self) -> None:
        """Free what it holds; it cannot be run again."""


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
