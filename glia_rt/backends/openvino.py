"""OpenVINO on the CPU, the fastest backend there.

It computes in bfloat16 where the processor multiplies bfloat16 in hardware, else in float32.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glia_rt import files
from glia_rt.backends.base import CPU_BATCH_SIZE, BackendOptions, refuse_device, why_not_importable
from glia_rt.backends.quiet import import_engine
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import SCORE
from glia_rt.errors import BackendError
from glia_rt.machine import cpu_count, instruction_set

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend:
    """A graph on OpenVINO, compiled for single pictures, for larger batches, or for both.

    A single picture runs on one stream, which uses all cores, while no other one does. Larger batches, and single
    pictures beside others, run on one stream per core. Each form is compiled when it is first needed.
    """

    name = "openvino"
    device = device_type = "cpu"

    def __init__(self, path: Path, sha256: str, precision: str, library: str, batch_size: int) -> None:
        self.library = library
        self.precision = precision
        self.batch_size = batch_size
        self.parallel = cpu_count()
        self._path = path
        self._sha256 = sha256
        self._requests: dict[int, queue.SimpleQueue[Any]] = {}
        self._opening = threading.Lock()
        self._closed = False

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Score a batch; see `Backend.run`."""
        idle, request = self._take(len(next(iter(inputs.values()))))
        try:
            request.infer(dict(inputs), share_inputs=True)
            return np.array(request.get_tensor(SCORE).data, np.float32)
        except RuntimeError as error:
            raise BackendError(f"backend openvino: {_reason(error)}") from error
        finally:
            idle.put(request)

    def _take(self, batch_size: int) -> tuple[queue.SimpleQueue[Any], Any]:
        """Return an inference request, and the queue to put it back into."""
        if batch_size == 1:
            idle = self._idle_requests(1)
            with contextlib.suppress(queue.Empty):
                return idle, idle.get_nowait()
        idle = self._idle_requests(self.parallel)
        return idle, idle.get()

    def close(self) -> None:
        """Free the compiled graphs."""
        self._closed = True
        self._requests = {}

    def prepare(self, batch_size: int) -> None:
        """Compile the graph for batches of this size.

        Raises:
            BackendError: OpenVINO cannot compile it.
        """
        self._idle_requests(1 if batch_size == 1 else self.parallel)

    def warm_up(self) -> None:
        """Compile both forms; see `Backend.warm_up`."""
        for batch_size in (1, self.batch_size):
            self.prepare(batch_size)

    def _idle_requests(self, streams: int) -> queue.SimpleQueue[Any]:
        """Return the queue of idle inference requests of so many streams, one a stream.

        The first call compiles the graph.
        """
        with self._opening:
            if self._closed:
                raise BackendError("backend openvino: closed")
            if streams not in self._requests:
                self._requests[streams] = self._compile(streams)
            return self._requests[streams]

    def _compile(self, streams: int) -> queue.SimpleQueue[Any]:
        ov = import_engine("openvino")

        # The Python binding builds its table of types on first use, and deadlocks if two threads start that at once.
        ov.Type.u8.to_dtype()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(cpu_count()),
        }
        # In its cache, OpenVINO 2026.4 tells neither precisions nor numbers of streams apart. On a processor with AMX,
        # BF16 then crashes or gives NaN on what was compiled in FP32. So each has a folder of its own.
        name = f"{self.precision}-{streams}x{cpu_count()}-{instruction_set()}"
        cache = files.cache_folder("openvino", f"{self.library.split()[-1]}-{self._sha256[:16]}", name)
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        try:
            compiled = ov.Core().compile_model(self._path, "CPU", settings)
        except RuntimeError as error:
            raise BackendError(f"backend openvino cannot load {self._path}: {_reason(error)}") from error
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            requests.put(compiled.create_infer_request())
        return requests


def open(bundle: Bundle, options: BackendOptions) -> OpenVinoBackend:
    """Check a bundle's FP32 graph and compile it; raises as `open_backend` does."""
    ov = import_engine("openvino")

    refuse_device("openvino", options)
    if options.input == "image":
        raise BackendError(
            "backend openvino: it computes whole numbers in 32 bits, the rules need 64; take input views"
        )
    fastest = default_precision()
    precision = options.precision or fastest
    if precision not in _HINTS:
        raise BackendError(f"backend openvino computes in {' or '.join(_HINTS)}, not {precision}")
    if precision == "bf16" and fastest != "bf16":
        raise BackendError("backend openvino: this CPU has no bf16 (AMX or AVX512-BF16); take fp32")
    name = GRAPHS[options.input, "fp32"]
    path = bundle.checked_file(name)
    library = f"openvino {ov.__version__.split('-')[0]}"
    batch_size = options.batch_size or CPU_BATCH_SIZE
    backend = OpenVinoBackend(path, bundle.sha256(name), precision, library, batch_size)
    backend.prepare(backend.batch_size)
    return backend


def unavailable() -> str | None:
    """Return why this backend cannot be used here; None if it can."""
    return why_not_importable("openvino", "cpu", "Core")


def default_precision() -> str:
    """Return "bf16" if the CPU has it in hardware (AMX or AVX512-BF16), else "fp32"."""
    ov = import_engine("openvino")

    return "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"


def _reason(error: RuntimeError) -> str:
    """Return the last line of an error. OpenVINO puts lines of its own source first and the cause last."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
