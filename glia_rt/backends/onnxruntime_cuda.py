"""ONNX Runtime on an NVIDIA GPU: runs the bundle's own files, no engine to build."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from glia_rt.backends import BackendOptions, why_not_importable
from glia_rt.backends import gpu as gpus
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import FRAGMENTS, GLOBAL_VIEW, SCORE
from glia_rt.cuda import Gpu
from glia_rt.errors import BackendError

if TYPE_CHECKING:
    from cuda.core import Stream

NAME: Final = "onnxruntime-cuda"
PROVIDER: Final = "CUDAExecutionProvider"
#: Pictures a run, unless told otherwise; and the most it is asked for at once.
_BATCH_SIZE: Final = 32
_LARGEST: Final = 4096


def open(bundle: Bundle, options: BackendOptions) -> gpus.GpuBackend:
    """Load a bundle's graph onto a GPU; raises as `open_backend` does."""
    precision = options.precision or default_precision()
    if precision not in ("fp16", "fp32"):
        raise BackendError(f"backend {NAME} computes in fp16 or fp32, not {precision}")
    batch_size = options.batch_size or _BATCH_SIZE
    gpu = Gpu.open(options.device or 0)
    session = create_session(bundle.checked_file(GRAPHS[options.input, precision]), gpu.index)
    engine = _Session(session, gpu.index, max(_LARGEST, batch_size))
    backend = gpus.GpuBackend(NAME, precision, engine, gpu, bundle.contract, options.input, batch_size)
    if options.input == "views":
        view = np.zeros((batch_size, bundle.contract.view_size, bundle.contract.view_size, 3), np.uint8)
        backend.prepare({GLOBAL_VIEW: view, FRAGMENTS: view})
    return backend


def create_session(path: Path, device: int) -> Any:
    """An ONNX Runtime session on a GPU.

    Raises:
        BackendError: The graph cannot be loaded, or not onto the GPU: ONNX Runtime itself would then go on on the CPU.
    """
    import onnxruntime as ort

    with contextlib.redirect_stdout(sys.stderr):  # where it says what it did not find
        ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's packages
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    options = {"device_id": str(device), "use_tf32": "0", "enable_cuda_graph": "1"}
    try:
        session = ort.InferenceSession(path, settings, providers=[(PROVIDER, options)])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BackendError(f"backend {NAME} cannot load {path}: {_first_line(error)}") from error
    require_cuda(session)
    session.disable_fallback()
    return session


def require_cuda(session: Any) -> None:
    """Refuse a session that ONNX Runtime, with no more than a line in its log, made for the CPU.

    Raises:
        BackendError: It runs on the CPU.
    """
    if (provider := session.get_providers()[0]) != PROVIDER:
        raise BackendError(
            f"backend {NAME}: ONNX Runtime fell back to {provider}, because CUDA 13 or cuDNN 9 cannot be loaded: "
            'pip install "glia-rt[gpu]"'
        )


def unavailable() -> str | None:
    """Why this backend cannot be used here; None if it can."""
    if reason := gpus.unavailable("onnxruntime", "gpu", why_not_importable):
        return reason
    import onnxruntime as ort

    if PROVIDER not in ort.get_available_providers():
        return (
            "the onnxruntime that is installed is the CPU's: pip uninstall onnxruntime, then "
            'pip install "glia-rt[gpu]"'
        )
    return None


def default_precision() -> str:
    """Always fp16."""
    return "fp16"


class _Session:
    """A session as `gpu.Engine`."""

    def __init__(self, session: Any, device: int, largest: int) -> None:
        self.batches = (1, largest)
        self._session = session
        self._device = device
        self._graphs = itertools.count(1)
        # ONNX Runtime keeps its CUDA graphs by thread, and captures one at a time: so one thread runs them all.
        self._thread = ThreadPoolExecutor(1, "onnxruntime-cuda")

    def prepare(
        self, shapes: gpus.Shapes, addresses: gpus.Addresses, score: int, stream: Stream, *, repeated: bool
    ) -> Callable[[], None]:
        """See `gpu.Engine`. The run itself is waited for: ONNX Runtime has a stream of its own."""
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, shape in shapes.items():
            binding.bind_input(name, "cuda", self._device, np.uint8, shape, addresses[name])
        count = next(iter(shapes.values()))[0]
        binding.bind_output(SCORE, "cuda", self._device, np.float32, (count,), score)
        options = ort.RunOptions()
        # A graph is for these addresses; -1 runs without one.
        options.add_run_config_entry("gpu_graph_id", str(next(self._graphs) if repeated else -1))

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding, options)
                binding.synchronize_outputs()
            except Exception as error:  # as above
                raise _failure(error, count) from error

        def launch() -> None:
            stream.sync()  # the inputs are there
            self._thread.submit(run).result()

        return launch

    def close(self) -> None:
        """Free the session."""
        self._thread.shutdown()
        self._session = None


def _failure(error: Exception, batch: int) -> BackendError:
    if "Failed to allocate memory" in str(error) or "out of memory" in str(error):
        return gpus.out_of_memory(NAME, batch)
    return BackendError(f"backend {NAME}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
