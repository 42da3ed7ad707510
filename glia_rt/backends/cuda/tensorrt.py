"""TensorRT and TensorRT for RTX on an NVIDIA GPU. Both run engines that `glia-rt build` made."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from glia_rt import files, steps
from glia_rt.backends.base import BackendOptions
from glia_rt.backends.cuda import lanes, tensorrt_api
from glia_rt.backends.cuda.device import Gpu
from glia_rt.backends.cuda.engine import TARGETS, EngineRecord, Target, checked_engine, require_in_profile
from glia_rt.backends.cuda.tensorrt_api import (
    ICudaEngine,
    ICudaEngineRtx,
    IExecutionContext,
    IExecutionContextRtx,
    IRuntimeConfigRtx,
    Runtime,
    RuntimeRtx,
    TensorRT,
    TensorRTRtx,
)
from glia_rt.bundle import Bundle
from glia_rt.errors import BackendError, EngineError, GliaError

if TYPE_CHECKING:
    from cuda.core import Stream

#: For each reason that `Runtime.get_engine_validity` may give against an engine: the error to raise, and what to do. An
#: EngineError is the engine's fault, a BackendError the machine's.
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
    """One of the two TensorRT libraries, as a backend to open."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def open(self, bundle: Bundle, options: BackendOptions) -> lanes.GpuBackend:
        """Check a bundle's engine and load it; raises as `open_backend` does."""
        name, precision = self.target.name, options.precision or bundle.gpu_precision(options.input)
        if precision not in ("fp16", "fp32"):
            raise BackendError(f"backend {name} computes in fp16 or fp32, not {precision}")
        gpu = Gpu.open(options.device or 0)
        trt = cast(TensorRT, tensorrt_api.load(self.target))
        content, record = checked_engine(
            bundle,
            name,
            options.input,
            precision,
            library_version=trt.__version__,
            capability=gpu.capability,
            batch_size=options.batch_size or 1,
        )
        batch_size = options.batch_size or record.usual_batch
        if batch_size > record.max_batch:
            raise BackendError(
                f"backend {name}: batches of {batch_size} are over the engine's largest, {record.max_batch}: take "
                f"--batch-size {record.max_batch}, or build with --batch 1:{batch_size}:{batch_size}"
            )
        from cuda.core import Device

        # TensorRT loads onto the current device.
        with lanes.cuda_errors(name, batch_size), lanes.current(Device(gpu.index)):
            load = _RtxEngine if self.target.portable else _PlanEngine
            engine = load(trt, content, record, gpu)
        library = f"{self.target.package} {trt.__version__}"
        backend = lanes.GpuBackend(name, precision, engine, gpu, bundle.contract, options.input, batch_size, library)
        try:
            backend.prepare(batch_size)
        except GliaError:
            backend.close()
            raise
        return backend

    def unavailable(self) -> str | None:
        """Return why this backend cannot be used here; None if it can."""
        return lanes.unavailable(self.target.package, self.target.extra)

    def default_precision(self) -> str:
        """Return "fp16"; a bundle without FP16 graphs is computed in FP32."""
        return "fp16"


RTX: Final = Library(TARGETS["tensorrt-rtx"])
TENSORRT: Final = Library(TARGETS["tensorrt"])


class _PlanEngine:
    """An engine of `tensorrt`.

    Each prepared run has a context of its own, for one shape and one stream. The contexts of a stream share its scratch
    memory; each would otherwise have as much of its own, for the largest batch. Runs on the model's inputs are captured
    into CUDA graphs. Runs on pictures are not: a picture's size seldom occurs twice.
    """

    def __init__(self, trt: TensorRT, content: bytes, record: EngineRecord, gpu: Gpu) -> None:
        self._record = record
        self.batches = (record.min_batch, record.max_batch)
        logger, self._errors = tensorrt_api.collecting_logger(trt)
        self._runtime: Runtime | None = trt.Runtime(logger)
        self._capture = record.input == "views"
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._engine = self._load(trt, content, gpu)
        self.scratch = 0 if self._engine is None else self._engine.device_memory_size_v2

    def _load(self, trt: TensorRT, content: bytes, gpu: Gpu) -> ICudaEngine | None:
        if self._runtime is None:
            raise BackendError(f"backend {self._record.target}: closed")
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._failure("cannot load the engine")
        return engine

    def prepare(
        self, shapes: lanes.Shapes, addresses: lanes.Addresses, scratch: int, stream: Stream
    ) -> Callable[[], None]:
        """Prepare a run; see `lanes.Engine`."""
        context = self._context(scratch)
        enqueue = self._enqueue(context, shapes, addresses, stream)
        if not self._capture:
            return enqueue
        # The first run after a change of shapes does work that must not be captured, so one run precedes the capture. A
        # CUDA graph is for one state of one context, so nothing else uses this context again.
        enqueue()
        stream.sync()
        try:
            graph = _captured(enqueue, stream)
        except (BackendError, lanes.cuda_error()) as error:
            reason = " ".join(str(error).split())
            steps.logger.warning("backend %s runs without a CUDA graph, which failed: %s", self._record.target, reason)
            self._errors.clear()
            return enqueue
        return partial(_replay, graph, stream, context)

    def _enqueue(
        self, context: IExecutionContext, shapes: lanes.Shapes, addresses: lanes.Addresses, stream: Stream
    ) -> Callable[[], None]:
        require_in_profile(self._record, shapes)
        taken = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        if not taken or not all(context.set_tensor_address(name, at) for name, at in addresses.items()):
            raise self._failure(f"the engine does not take {dict(shapes)}")

        def enqueue() -> None:
            if not context.execute_async_v3(int(stream.handle)):
                raise self._failure("the engine failed")

        return enqueue

    def _context(self, scratch: int) -> IExecutionContext:
        context = self._new_context()
        if context is None:
            raise self._failure("no execution context")
        context.set_device_memory(scratch, self.scratch)
        return context

    def _new_context(self) -> IExecutionContext | None:
        return None if self._engine is None else self._engine.create_execution_context(self._strategy)

    def keep(self) -> None:
        """Do nothing. An engine of `tensorrt` is compiled when it is built, so there is nothing to keep."""

    def close(self) -> None:
        """Free the engine, then the runtime that loaded it."""
        self._engine = None
        self._runtime = None

    def _failure(self, what: str) -> BackendError:
        reasons = "; ".join(self._errors[-3:])
        self._errors.clear()
        if re.search("out of memory|OutOfMemory|OUT_OF_MEMORY", reasons):
            return lanes.out_of_memory(self._record.target, self.batches[1])
        return BackendError(f"backend {self._record.target}: {what}" + (f" ({reasons})" if reasons else ""))


class _RtxEngine(_PlanEngine):
    """An engine of `tensorrt_rtx`. It compiles itself for the GPU that it runs on, and captures its own CUDA graphs."""

    def _load(self, trt: TensorRT, content: bytes, gpu: Gpu) -> ICudaEngine | None:
        rtx = cast(TensorRTRtx, trt)
        require_valid(rtx, cast(RuntimeRtx, self._runtime), content)
        engine = super()._load(trt, content, gpu)
        config = cast(ICudaEngineRtx, engine).create_runtime_config()
        strategy = rtx.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if self._capture else strategy.DISABLED
        self._cache = config.create_runtime_cache()
        config.set_runtime_cache(self._cache)
        # By default the kernels for a new shape are compiled in the background while other kernels stand in for them.
        # The scores of one batch then change as soon as the compiled kernels are ready.
        config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        config.set_execution_context_allocation_strategy(self._strategy)
        self._config: IRuntimeConfigRtx | None = config
        self._cache_file = runtime_cache_file(self._record, gpu.name, driver_version(gpu))
        if self._cache_file is not None:
            with contextlib.suppress(OSError):  # there is no such file yet, or it cannot be read
                # It returns False if another driver or version wrote the file. The kernels are then compiled and
                # written again.
                self._cache.deserialize(self._cache_file.read_bytes())
        return engine

    def prepare(
        self, shapes: lanes.Shapes, addresses: lanes.Addresses, scratch: int, stream: Stream
    ) -> Callable[[], None]:
        """Prepare a run; see `lanes.Engine`."""
        context = self._context(scratch)
        enqueue = self._enqueue(context, shapes, addresses, stream)
        if self._capture and not cast(IExecutionContextRtx, context).is_stream_capturable(int(stream.handle)):
            steps.logger.warning("backend %s runs without a CUDA graph: it cannot be captured", self._record.target)
        return enqueue

    def _new_context(self) -> IExecutionContext | None:
        if self._engine is None or self._config is None:
            raise BackendError(f"backend {self._record.target}: closed")
        return cast(ICudaEngineRtx, self._engine).create_execution_context(self._config)

    def keep(self) -> None:
        """Write the kernels compiled for this GPU into the user's cache, so that the next start finds them."""
        if self._cache_file is None:
            return
        compiled = self._cache.serialize()
        if compiled is None:
            return
        with contextlib.suppress(OSError):  # if the disk is full, only the next start takes longer
            if not self._cache_file.is_file() or self._cache_file.read_bytes() != bytes(compiled):
                files.write_whole(self._cache_file, bytes(compiled))

    def close(self) -> None:
        """Keep the kernels that were compiled since the start for other batch sizes, then free the engine."""
        self.keep()
        self._config = None
        del self._cache
        super().close()


def _captured(enqueue: Callable[[], None], stream: Stream) -> Any:
    """Return the CUDA graph of what a call queues on a stream."""
    builder = stream.create_graph_builder().begin_building("thread_local")
    try:
        enqueue()
        return builder.end_building().complete()
    finally:
        builder.close()  # this also ends a capture that failed


def _replay(graph: Any, stream: Stream, context: IExecutionContext) -> None:
    """Launch a captured CUDA graph. It uses the memory of its context, which must therefore live as long."""
    graph.launch(stream)


def require_valid(trt: TensorRTRtx, runtime: RuntimeRtx, content: bytes) -> None:
    """Refuse an engine that would not run here, before it is loaded.

    Raises:
        EngineError: The file is not an engine of TensorRT for RTX, or was built by another version or for other GPUs.
        BackendError: The driver or the CUDA runtime is too old or does not work, or the GPU has too little memory.
    """
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity != trt.EngineValidity.INVALID:
        return
    known = {name: int(getattr(trt.EngineInvalidityDiagnostics, name)) for name in INVALIDITY}
    for name, (error, text) in INVALIDITY.items():
        if int(diagnostics) & known[name]:
            raise error(f"the engine does not run here: {text}")
    # TensorRT for RTX gives no reason if there is no driver.
    error, text = INVALIDITY["CUDA_ERROR"]
    raise error(f"the engine does not run here: {text}")


def runtime_cache_file(record: EngineRecord, gpu_name: str, driver: str) -> Path | None:
    """Return the file that keeps kernels for this engine, GPU and driver; None without a writable cache folder."""
    folder = files.cache_folder("tensorrt-rtx")
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu_name)
    return None if folder is None else folder / f"{record.engine_sha256[:16]}-{name}-{driver}.cache"


def driver_version(gpu: Gpu) -> str:
    """Return the driver's own version, for example "580.65.6".

    Without NVML, as in some containers, return the version of CUDA that the driver supports, for example "cuda13.0".
    """
    from cuda.core import system

    try:
        return ".".join(map(str, system.get_kernel_mode_driver_version()))
    except RuntimeError:
        return f"cuda{gpu.cuda}"
