"""ONNX Runtime on the CPU. It runs on every CPU, in float32."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from glia_rt.backends.base import CPU_BATCH_SIZE, BackendOptions, refuse_device, why_not_importable
from glia_rt.backends.quiet import import_engine
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import SCORE
from glia_rt.errors import BackendError
from glia_rt.machine import cpu_count
from glia_rt.versions import installed_versions

#: Two distributions that hold the same package. Each overwrites the files of the other.
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


class OnnxRuntimeBackend:
    """A session on ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    precision = "fp32"
    device = device_type = "cpu"
    parallel = 1  # one run at a time, on all cores

    def __init__(self, session: Any, library: str, batch_size: int) -> None:
        self.library = library
        self.batch_size = batch_size
        self._session = session
        self._running = threading.Lock()  # two runs at once would share the cores and hold two sets of activations

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Score a batch; see `Backend.run`."""
        with self._running:
            if self._session is None:
                raise BackendError("backend onnxruntime: closed")
            try:
                scores: npt.NDArray[np.float32] = self._session.run([SCORE], dict(inputs))[0]
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                raise BackendError(f"backend onnxruntime: {first_line(error)}") from error
            return scores

    def warm_up(self) -> None:
        """Do nothing. A session is compiled when it is loaded, for batches of every size."""

    def close(self) -> None:
        """Free the session."""
        self._session = None


def open(bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
    """Load a bundle's FP32 graph; raises as `open_backend` does."""
    refuse_device("onnxruntime", options)
    if options.precision not in (None, "fp32"):
        raise BackendError(f"backend onnxruntime computes in fp32 on a CPU, not {options.precision}")
    ort = import_engine("onnxruntime")

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = cpu_count()
    settings.log_severity_level = 3
    # Threads that spin between operators would take the cores from the threads that decode pictures.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = bundle.checked_file(GRAPHS[options.input, "fp32"])
    try:
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BackendError(f"backend onnxruntime cannot load {path}: {first_line(error)}") from error
    return OnnxRuntimeBackend(session, f"onnxruntime {ort.__version__}", options.batch_size or CPU_BATCH_SIZE)


def unavailable() -> str | None:
    """Return why this backend cannot be used here; None if it can."""
    return why_not_importable("onnxruntime", "cpu", "InferenceSession")


def default_precision() -> str:
    """Return "fp32". ONNX Runtime emulates the shorter types on a CPU."""
    return "fp32"


def installed_twice() -> bool:
    """Return whether onnxruntime and onnxruntime-gpu are both installed, so that one overwrote the other."""
    return set(DISTRIBUTIONS) <= set(installed_versions(*DISTRIBUTIONS))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message. ONNX Runtime's messages continue with lines of its source."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
