"""TensorRT on an NVIDIA GPU: engines that `glia-rt build` made, for TensorRT for RTX and for TensorRT."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from glia_rt import files
from glia_rt.backends.base import BackendOptions, cache_folder
from glia_rt.backends.cuda import lanes, tensorrt_api
from glia_rt.backends.cuda.device import Gpu
from glia_rt.backends.cuda.engine import TARGETS, EngineRecord, Target, checked_engine, require_in_profile
from glia_rt.backends.cuda.tensorrt_api import (
    ICudaEngine,
    ICudaEngineRtx,
    IExecutionContext,
    Runtime,
    RuntimeRtx,
    TensorRT,
    TensorRTRtx,
)
from glia_rt.bundle import Bundle
from glia_rt.contract import DTYPE, SCORE
from glia_rt.errors import BackendError, EngineError, GliaError

if TYPE_CHECKING:
    from cuda.core import Stream

#: What `Runtime.get_engine_validity` may say against an engine, what to do about it, and whose fault it is.
INVALIDITY: Final[dict[str, tuple[type[GliaError], str]]] = {
    "VERSION_MISMATCH": (EngineError, "another version of TensorRT for RTX built it: build it again"),
    "UNSUPPORTED_CC": (
        EngineError,
        "it was not built for this GPU's compute capability: name it with --capability, or, for 9.0 and 10.0, which "
        "TensorRT for RTX does not build for, take --target tensorrt",
    ),
    "MALFORMED_ENGINE": (EngineError, "it is no engine of TensorRT for RTX: build it again"),
    "OLD_CUDA_DRIVER": (BackendError, "the NVIDIA driver is too old for it: install a newer one"),
    "OLD_CUDA_RUNTIME": (BackendError, "the CUDA runtime is too old for it: upgrade the CUDA packages"),
    "INSUFFICIENT_GPU_MEMORY": (
        BackendError,
        "the GPU's memory does not suffice: free it, or build for smaller batches, --batch 1:8:8",
    ),
    "CUDA_ERROR": (BackendError, "the driver or the CUDA runtime does not work: see nvidia-smi"),
}


class Library:
    """One of the two TensorRTs, as a backend to open."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def open(self, bundle: Bundle, options: BackendOptions) -> lanes.GpuBackend:
        """Check a bundle's engine and load it; raises as `open_backend` does."""
        name, precision = self.target.name, options.precision or self.default_precision()
        if precision not in ("fp16", "fp32"):
            raise BackendError(f"backend {name} computes in fp16 or fp32, not {precision}")
        gpu = Gpu.open(options.device or 0)
        trt = cast(TensorRT, tensorrt_api.load(self.target))
        content, record = checked_engine(
            bundle, name, options.input, precision, library_version=trt.__version__, capability=gpu.capability
        )
        batch_size = options.batch_size or record.usual_batch
        if batch_size > record.max_batch:
            raise BackendError(
                f"backend {name}: batches of {batch_size} are over the engine's largest, {record.max_batch}: take "
                f"--batch-size {record.max_batch}, or build with --batch 1:{batch_size}:{batch_size}"
            )
        from cuda.core import Device

        with lanes.cuda_errors(name, batch_size):
            Device(gpu.index).set_current()  # TensorRT loads onto the current one
            load = _RtxEngine if self.target.portable else _PlanEngine
            engine = load(trt, content, record, gpu)
        library = f"{self.target.package} {trt.__version__}"
        backend = lanes.GpuBackend(name, precision, engine, gpu, bundle.contract, options.input, batch_size, library)
        try:
            usual = {key: (batch_size, *shape[1:]) for key, (_, shape, _) in record.profile.items()}
            backend.prepare({key: np.zeros(shape, DTYPE) for key, shape in usual.items()})
        except GliaError:
            backend.close()
            raise
        engine.keep()
        return backend

    def unavailable(self) -> str | None:
        """Why this backend cannot be used here; None if it can."""
        return lanes.unavailable(self.target.package, self.target.extra)

    def default_precision(self) -> str:
        """Always fp16."""
        return "fp16"


RTX: Final = Library(TARGETS["tensorrt-rtx"])
TENSORRT: Final = Library(TARGETS["tensorrt"])


@dataclass(frozen=True)
class _Replay:
    """A captured CUDA graph; it uses the context's memory, which must live as long."""

    graph: Any
    stream: Stream
    context: Any

    def __call__(self) -> None:
        self.graph.launch(self.stream)


class _PlanEngine:
    """An engine of `tensorrt`: a context for each shape and stream, captured into a CUDA graph where it runs often."""

    def __init__(self, trt: TensorRT, content: bytes, record: EngineRecord, gpu: Gpu) -> None:
        self._record = record
        self.batches = (record.min_batch, record.max_batch)
        logger, self._errors = tensorrt_api.collecting_logger(trt)
        self._runtime: Runtime | None = trt.Runtime(logger)
        self._loose_contexts: dict[int, IExecutionContext] = {}
        self._engine = self._load(trt, content, gpu)

    def _load(self, trt: TensorRT, content: bytes, gpu: Gpu) -> ICudaEngine | None:
        if self._runtime is None:
            raise BackendError(f"backend {self._record.target}: closed")
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._failure("cannot load the engine")
        return engine

    def prepare(
        self, shapes: lanes.Shapes, addresses: lanes.Addresses, score: int, stream: Stream, *, repeated: bool
    ) -> Callable[[], None]:
        """See `gpu.Engine`."""
        if not repeated:
            return self._enqueue(self._loose(stream), shapes, addresses, score, stream)
        context = self._context(repeated=True)
        enqueue = self._enqueue(context, shapes, addresses, score, stream)
        # Once outside the graph: the first run after a change of shapes does work that must not be captured. A graph
        # is for one state of one context, so the context is not used again by anything else.
        enqueue()
        stream.sync()
        builder = stream.create_graph_builder().begin_building("thread_local")
        try:
            enqueue()
            graph = builder.end_building().complete()
        finally:
            builder.close()  # which also ends a capture that failed
        return _Replay(graph, stream, context)

    def _loose(self, stream: Stream) -> IExecutionContext:
        """The context of a stream for shapes and addresses that change from run to run."""
        key = int(stream.handle)
        if key not in self._loose_contexts:
            self._loose_contexts[key] = self._context(repeated=False)
        return self._loose_contexts[key]

    def _enqueue(
        self, context: IExecutionContext, shapes: lanes.Shapes, addresses: lanes.Addresses, score: int, stream: Stream
    ) -> Callable[[], None]:
        require_in_profile(self._record, shapes)
        taken = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        addresses = {**addresses, SCORE: score}
        if not taken or not all(context.set_tensor_address(name, at) for name, at in addresses.items()):
            raise self._failure(f"the engine does not take {dict(shapes)}")

        def enqueue() -> None:
            if not context.execute_async_v3(int(stream.handle)):
                raise self._failure("the engine failed")

        return enqueue

    def _context(self, repeated: bool) -> IExecutionContext:
        context = None if self._engine is None else self._engine.create_execution_context()
        if context is None:
            raise self._failure("no execution context")
        return context

    def keep(self) -> None:
        """Keep what was compiled for this GPU: nothing, such engines are compiled when they are built."""

    def close(self) -> None:
        """Free the engine, then the runtime that it came from."""
        self._loose_contexts.clear()
        self._engine = None
        self._runtime = None

    def _failure(self, what: str) -> BackendError:
        reasons = "; ".join(self._errors[-3:])
        self._errors.clear()
        if re.search("out of memory|OutOfMemory|OUT_OF_MEMORY", reasons):
            return lanes.out_of_memory(self._record.target, self.batches[1])
        return BackendError(f"backend {self._record.target}: {what}" + (f" ({reasons})" if reasons else ""))


class _RtxEngine(_PlanEngine):
    """An engine of `tensorrt_rtx`: it compiles itself for the GPU it meets, and captures its own CUDA graphs."""

    def _load(self, trt: TensorRT, content: bytes, gpu: Gpu) -> ICudaEngine | None:
        rtx = cast(TensorRTRtx, trt)
        require_valid(rtx, cast(RuntimeRtx, self._runtime), content)
        engine = super()._load(trt, content, gpu)
        configs = [cast(ICudaEngineRtx, engine).create_runtime_config() for _ in range(2)]
        # Arrays of others come at other addresses each time, where capturing would not pay.
        configs[False].cuda_graph_strategy = rtx.CudaGraphStrategy.DISABLED
        configs[True].cuda_graph_strategy = rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = configs[True].create_runtime_cache()
        for config in configs:
            config.set_runtime_cache(self._cache)
            # By default kernels for a new shape are compiled in the background while others stand in for them, and the
            # scores of one batch change when they are ready.
            config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        self._configs = configs
        self._cache_file = runtime_cache_file(self._record, gpu.name, driver_version(gpu))
        if self._cache_file is not None and self._cache_file.is_file():
            # False where another driver or version wrote it: it is then compiled, and written, anew.
            self._cache.deserialize(self._cache_file.read_bytes())
        return engine

    def prepare(
        self, shapes: lanes.Shapes, addresses: lanes.Addresses, score: int, stream: Stream, *, repeated: bool
    ) -> Callable[[], None]:
        """See `gpu.Engine`."""
        context = self._context(repeated=True) if repeated else self._loose(stream)
        return self._enqueue(context, shapes, addresses, score, stream)

    def _context(self, repeated: bool) -> IExecutionContext:
        engine = cast(ICudaEngineRtx, self._engine)
        context = engine.create_execution_context(self._configs[repeated])
        if context is None:
            raise self._failure("no execution context")
        return context

    def keep(self) -> None:
        """Write what was compiled for this GPU into the user's cache, so that the next start finds it."""
        if self._cache_file is None:
            return
        compiled = bytes(self._cache.serialize())
        if self._cache_file.is_file() and self._cache_file.read_bytes() == compiled:
            return
        with contextlib.suppress(OSError):  # a full disk costs the next start time, and this one nothing
            files.write_whole(self._cache_file, compiled)

    def close(self) -> None:
        """Free the engine, after keeping what later batch sizes compiled."""
        self.keep()
        self._loose_contexts.clear()  # before the cache that their kernels are in
        self._configs.clear()
        del self._cache
        super().close()


def require_valid(trt: TensorRTRtx, runtime: RuntimeRtx, content: bytes) -> None:
    """Refuse an engine that would not run here, before it is loaded.

    Raises:
        EngineError: It is no such engine, or one of another version or for other GPUs.
        BackendError: The driver, the CUDA runtime or the GPU's memory stand in the way.
    """
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity != trt.EngineValidity.INVALID:
        return
    known = {name: int(getattr(trt.EngineInvalidityDiagnostics, name)) for name in INVALIDITY}
    for name, (error, text) in INVALIDITY.items():
        if int(diagnostics) & known[name]:
            raise error(f"the engine does not run here: {text}")
    # It says nothing where there is no driver.
    error, text = INVALIDITY["CUDA_ERROR"]
    raise error(f"the engine does not run here: {text}")


def runtime_cache_file(record: EngineRecord, gpu_name: str, driver: str) -> Path | None:
    """Where kernels compiled for this engine, GPU and driver are kept; None if the user has no such place."""
    folder = cache_folder("tensorrt-rtx")
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu_name)
    return None if folder is None else folder / f"{record.engine_sha256[:16]}-{name}-{driver}.cache"


def driver_version(gpu: Gpu) -> str:
    """The driver's own version, "580.65.6" say; where NVML is missing, as in some containers, that of its CUDA."""
    from cuda.core import system

    try:
        return ".".join(map(str, system.get_kernel_mode_driver_version()))
    except RuntimeError:
        return f"cuda{gpu.cuda}"
