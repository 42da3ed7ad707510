"""OpenVINO on the CPU: bfloat16 where the processor multiplies it in hardware, the fastest way to score on a CPU."""

from __future__ import annotations

import importlib.util
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glia_rt.backends import BackendOptions, cpu_count
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import SCORE
from glia_rt.errors import BackendError, MissingPackageError

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend:
    """A compiled model and one inference request per stream."""

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, precision: str) -> None:
        self.precision = precision
        self.parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._compiled: Any = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.parallel):
            self._idle.put(compiled.create_infer_request())

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Score a batch; see `Backend.run`."""
        if self._compiled is None:
            raise BackendError("backend openvino: closed")
        request = self._idle.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            return np.array(request.get_tensor(SCORE).data, np.float32)
        except RuntimeError as error:
            raise BackendError(f"backend openvino: {_first_line(error)}") from error
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Free the model."""
        self._compiled = None
        self._idle = queue.SimpleQueue()


def open(bundle: Bundle, options: BackendOptions) -> OpenVinoBackend:
    """Compile a bundle's FP32 graph, or take it from the cache; raises as `open_backend` does."""
    precision = options.precision or (default_precision() if options.input == "views" else "fp32")
    if precision not in _HINTS:
        raise BackendError(f"backend openvino computes in {' or '.join(_HINTS)}, not {precision}")
    if precision == "bf16" and options.input == "image":
        raise BackendError("backend openvino: bf16 would round the sampler's pixels; take input views, or fp32")
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingPackageError("openvino", "cpu") from error
    name = GRAPHS[options.input, "fp32"]
    path = bundle.checked_file(name)
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": str(cpu_count()),
        "INFERENCE_NUM_THREADS": str(cpu_count()),
        "CACHE_DIR": str(_cache_folder(ov.__version__, bundle.sha256(name))),
    }
    try:
        return OpenVinoBackend(ov.Core().compile_model(path, "CPU", settings), precision)
    except RuntimeError as error:
        raise BackendError(f"backend openvino cannot load {path}: {_first_line(error)}") from error


def unavailable() -> str | None:
    """Why this backend cannot be used here; None if it can."""
    if importlib.util.find_spec("openvino") is None:
        return str(MissingPackageError("openvino", "cpu"))
    return None


def default_precision() -> str:
    """bf16 where the CPU has it in hardware (AMX or AVX512-BF16), else fp32."""
    import openvino as ov

    return "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"


def _cache_folder(version: str, sha256: str) -> Path:
    """Where compiled models are kept; never in the bundle, which may be shared and read-only.

    OpenVINO itself tells processors and settings apart within one folder.
    """
    from platformdirs import user_cache_path

    return user_cache_path("glia-rt", appauthor=False) / "openvino" / f"{version.split('-')[0]}-{sha256[:16]}"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
