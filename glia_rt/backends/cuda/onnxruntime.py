"""ONNX Runtime on an NVIDIA GPU. It runs the bundle's own files, so no engine has to be built."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from glia_rt.backends.base import BackendOptions
from glia_rt.backends.cuda import lanes
from glia_rt.backends.cuda.device import Gpu
from glia_rt.backends.onnxruntime import first_line
from glia_rt.backends.quiet import import_engine
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import SCORE
from glia_rt.errors import BackendError, GliaError
from glia_rt.steps import logger
from glia_rt.versions import install_command

if TYPE_CHECKING:
    from cuda.core import Stream

NAME: Final = "onnxruntime-cuda"
PROVIDER: Final = "CUDAExecutionProvider"
#: The number of no CUDA graph.
_NO_GRAPH: Final = -1
#: Default batch size.
_BATCH_SIZE: Final = 32
#: Largest batch, unless a larger batch size was asked for.
_LARGEST: Final = 4096
#: The last one is what cuBLAS says.
_OUT_OF_MEMORY: Final = ("Failed to allocate memory", "out of memory", "ALLOC_FAILED", "resource allocation failed")


def open(bundle: Bundle, options: BackendOptions) -> lanes.GpuBackend:
    """Load a bundle's graph onto a GPU; raises as `open_backend` does."""
    ort = import_engine("onnxruntime")
    from cuda.core import Device

    precision = options.precision or bundle.gpu_precision(options.input)
    if precision not in ("fp16", "fp32"):
        raise BackendError(f"backend {NAME} computes in fp16 or fp32, not {precision}")
    batch_size = options.batch_size or _BATCH_SIZE
    gpu = Gpu.open(options.device or 0)
    # ONNX Runtime computes some nodes of the image graph on the CPU, so it cannot capture that graph.
    capture = options.input == "views"
    path = bundle.checked_file(GRAPHS[options.input, precision])
    with lanes.current(Device(gpu.index)):  # ONNX Runtime changes the current device
        try:
            session = create_session(path, gpu.index, capture=capture)
        except BackendError as error:
            if not capture or "graph capture" not in str(error):
                raise
            logger.warning("%s; all batches run without a CUDA graph", error)
            capture = False
            session = create_session(path, gpu.index, capture=capture)
    engine = _Session(session, gpu.index, max(_LARGEST, batch_size), capture=capture)
    library = f"onnxruntime {ort.__version__}"
    backend = lanes.GpuBackend(NAME, precision, engine, gpu, bundle.contract, options.input, batch_size, library)
    if options.input == "views":
        try:
            backend.prepare(batch_size)
        except GliaError:
            backend.close()
            raise
        # Nothing else in the process may allocate on the GPU while ONNX Runtime captures. The usual batch is therefore
        # captured now, and other batch sizes run without a CUDA graph.
        engine.capture = False
    return backend


def create_session(path: Path, device: int, *, capture: bool) -> Any:
    """Return an ONNX Runtime session on a GPU.

    Raises:
        BackendError: The graph cannot be loaded, or cannot be loaded onto the GPU. In the second case ONNX Runtime
            itself would continue on the CPU.
    """
    ort = import_engine("onnxruntime")

    with contextlib.redirect_stdout(sys.stderr):  # preload_dlls prints there what it did not find
        ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's packages
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    # By default cuDNN's convolutions are timed and the fastest is taken, which may be another one in the next process.
    # Its scores then differ in the last bits, and a run that is resumed mixes both.
    settings.use_deterministic_compute = True
    options = {
        "device_id": str(device),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": str(int(capture)),
    }
    try:
        session = ort.InferenceSession(path, settings, providers=[(PROVIDER, options)], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise failure(error, _BATCH_SIZE, f"cannot load {path}: ") from error
    require_cuda(session)
    return session


def require_cuda(session: Any) -> None:
    """Refuse a session that runs on the CPU. ONNX Runtime reports that fallback only by a line in its log.

    Raises:
        BackendError: The session runs on the CPU.
    """
    if (provider := session.get_providers()[0]) != PROVIDER:
        raise BackendError(
            f"backend {NAME}: ONNX Runtime fell back to {provider}, because CUDA 13 or cuDNN 9 cannot be loaded: "
            f"{install_command('gpu')}"
        )


def unavailable() -> str | None:
    """Return why this backend cannot be used here; None if it can."""
    if reason := lanes.unavailable("onnxruntime", "gpu"):
        return reason
    ort = import_engine("onnxruntime")

    if PROVIDER not in ort.get_available_providers():
        return (
            f"the onnxruntime that is installed is the CPU's: pip uninstall onnxruntime, then {install_command('gpu')}"
        )
    return None


def default_precision() -> str:
    """Return "fp16"; a bundle without FP16 graphs is computed in FP32."""
    return "fp16"


class _Session:
    """A session as a `lanes.Engine`."""

    def __init__(self, session: Any, device: int, largest: int, *, capture: bool) -> None:
        self.batches = (1, largest)
        self.scratch = 0
        self._session = session
        self._device = device
        self.capture = capture
        self._graphs = itertools.count(1)
        # ONNX Runtime keeps its CUDA graphs per thread and captures one at a time. One thread therefore runs them all.
        self._thread = ThreadPoolExecutor(1, "onnxruntime-cuda")

    def prepare(
        self, shapes: lanes.Shapes, addresses: lanes.Addresses, scratch: int, stream: Stream
    ) -> Callable[[], None]:
        """Prepare a run; see `lanes.Engine`.

        The returned function waits for the run to end, because ONNX Runtime has a stream of its own.
        """
        binding = self._session.io_binding()
        for name, shape in shapes.items():
            binding.bind_input(name, "cuda", self._device, np.uint8, shape, addresses[name])
        count = next(iter(shapes.values()))[0]
        binding.bind_output(SCORE, "cuda", self._device, np.float32, (count,), addresses[SCORE])
        # A CUDA graph is bound to these addresses.
        graph = next(self._graphs) if self.capture else _NO_GRAPH

        def run() -> None:
            nonlocal graph
            try:
                self._run(binding, graph, count)
            except BackendError as error:
                if graph == _NO_GRAPH:
                    raise
                self._run(binding, _NO_GRAPH, count)  # which fails, too, unless the graph is to blame
                logger.warning("%s; batches of %d run without a CUDA graph", error, count)
                graph = _NO_GRAPH

        def launch() -> None:
            stream.sync()  # the inputs have arrived
            running = self._thread.submit(run)
            try:
                running.result()
            finally:
                wait([running])  # an interrupt must not give the lane back that the session still writes to

        return launch

    def _run(self, binding: Any, graph: int, count: int) -> None:
        options = import_engine("onnxruntime").RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        try:
            self._session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
        except Exception as error:  # the exceptions share no base class, as above
            raise failure(error, count) from error

    def keep(self) -> None:
        """Do nothing. ONNX Runtime compiles nothing that could be kept."""

    def close(self) -> None:
        """Free the session."""
        self._thread.shutdown()
        self._session = None


def failure(error: Exception, batch: int, what: str = "") -> BackendError:
    """Return the error for an exception of ONNX Runtime during a batch of this size; `what` precedes its text."""
    if any(sign in str(error) for sign in _OUT_OF_MEMORY):
        return lanes.out_of_memory(NAME, batch)
    return BackendError(f"backend {NAME}: {what}{first_line(error)}")
