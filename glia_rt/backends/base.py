"""The protocol that every backend follows, the options that open one, and the helpers that backends share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from glia_rt.backends.quiet import import_engine
from glia_rt.contract import GraphKind
from glia_rt.errors import BackendError, MissingPackageError

#: Pictures in a batch on a CPU. Larger batches are no faster, and a single file is padded to a whole batch.
CPU_BATCH_SIZE: Final = 4


@dataclass(frozen=True)
class BackendOptions:
    """How to open a backend.

    Attributes:
        input: Which graph to run: "views" or "image".
        precision: "fp32", "fp16" or "bf16"; None for the backend's default on this machine.
        batch_size: Pictures in most calls of `run`. The backend prepares for batches of this size. None for the
            backend's default.
        device: Index of the GPU; None for the first. A backend on the CPU takes only None.
    """

    input: GraphKind = "views"
    precision: str | None = None
    batch_size: int | None = None
    device: int | None = None


class Backend(Protocol):
    """A loaded graph. Several threads may call `run` at once.

    Attributes:
        name: Key of the backend in `BACKENDS`.
        precision: The type that it computes in: "fp32", "fp16" or "bf16".
        library: The library that computes, and its version: "openvino 2026.4.1".
        device: The device that it runs on: "cpu", or "cuda:0 (NVIDIA L4)".
        device_type: The device without its number: "cpu", or the GPU's name.
        batch_size: Pictures in most calls of `run`.
        parallel: Number of calls of `run` that it works on at once. Further calls wait.
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
            inputs: Arrays by input name: the contract's inputs, uint8 (N, *shape), or `image`, uint8 (N, H, W, 3). N
                may change from call to call. A new N or a new picture size may cost a compilation.

        Returns:
            Scores, float32 (N,).

        Raises:
            BackendError: The engine failed.
        """

    def warm_up(self) -> None:
        """Compile, capture and allocate what calls of `run` with 1 to `batch_size` pictures need.

        Whatever is compiled is kept in the user's cache for the next start.

        Raises:
            BackendError: The engine failed.
        """

    def close(self) -> None:
        """Free what the backend holds. It cannot run again."""


def why_not_importable(package: str, extra: str, *names: str) -> str | None:
    """Return why a package, or a module of it, cannot be imported and what to do about it; None if it can.

    Args:
        package: The package, or the module, that a backend imports.
        extra: The extra of glia-rt that installs it.
        names: What a backend uses of it. An installation that broke off may lack them.
    """
    try:
        module = import_engine(package)
        for name in names:
            getattr(module, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - code of others, which may raise anything, as Rust's panics
        if isinstance(error, ModuleNotFoundError) and error.name in (package, package.partition(".")[0]):
            return str(MissingPackageError(package, extra))
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{package} is installed but cannot be imported ({reason}): install it again"
    return None


def refuse_device(name: str, options: BackendOptions) -> None:
    """Refuse a GPU, for a backend that runs on the CPU.

    Raises:
        BackendError: `options.device` names a GPU.
    """
    if options.device is not None:
        raise BackendError(f"backend {name} runs on the CPU; --device is for GPUs")
