"""The part of TensorRT's Python API that is called here, as types.

`tensorrt_rtx` and `tensorrt` have no type hints, and on a machine without them mypy has nothing to check against. The
classes here hold every name that the runner and the builder use. A test walks them and checks that the libraries have
every name. Methods that the two libraries call differently are in classes of their own, whose names end in Rtx.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

from glia_rt.backends.cuda.engine import Target


class TensorRT(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`: the names that running needs."""

    __version__: str
    ExecutionContextAllocationStrategy: Any
    ILogger: Any
    Runtime: Any


class Runtime(Protocol):
    """Loads engines."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class ICudaEngine(Protocol):
    """A loaded engine, which several contexts may share."""

    device_memory_size_v2: int

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None: ...


class IExecutionContext(Protocol):
    """Runs an engine, on one stream at a time."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class IExecutionContextRtx(IExecutionContext, Protocol):
    """Runs an engine, and captures its own CUDA graphs."""

    def is_stream_capturable(self, stream: int) -> bool: ...


class TensorRTRtx(TensorRT, Protocol):
    """The module `tensorrt_rtx`: the names that running needs."""

    CudaGraphStrategy: Any
    DynamicShapesKernelSpecializationStrategy: Any
    EngineInvalidityDiagnostics: Any
    EngineValidity: Any


class RuntimeRtx(Runtime, Protocol):
    """Loads engines, and says beforehand whether an engine will run."""

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]: ...


class ICudaEngineRtx(Protocol):
    """A loaded engine."""

    def create_runtime_config(self) -> IRuntimeConfigRtx: ...

    def create_execution_context(self, runtime_config: IRuntimeConfigRtx) -> IExecutionContext | None: ...


class IRuntimeConfigRtx(Protocol):
    """The settings that an engine runs with."""

    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def create_runtime_cache(self) -> IRuntimeCacheRtx: ...

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...

    def set_runtime_cache(self, cache: IRuntimeCacheRtx) -> bool: ...


class IRuntimeCacheRtx(Protocol):
    """The kernels compiled for the GPU of this machine."""

    def serialize(self) -> Any: ...

    def deserialize(self, blob: bytes) -> bool: ...


class TensorRTBuilder(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`: the names that building needs."""

    __version__: str
    Builder: Any
    BuilderFlag: Any
    ILogger: Any
    NetworkDefinitionCreationFlag: Any
    OnnxParser: Any


class TensorRTBuilderRtx(TensorRTBuilder, Protocol):
    """The module `tensorrt_rtx`: the names that building needs."""

    ComputeCapability: Any


class Builder(Protocol):
    """Builds engines."""

    def create_network(self, flags: int) -> INetworkDefinition: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any: ...


class INetworkDefinition(Protocol):
    """A graph."""

    num_inputs: int

    def get_input(self, index: int) -> Any: ...


class OnnxParser(Protocol):
    """Reads ONNX."""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...

    def get_error(self, index: int) -> Any: ...


class IOptimizationProfile(Protocol):
    """The shapes that an engine takes."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class IBuilderConfig(Protocol):
    """The settings that an engine is built with."""

    def clear_flag(self, flag: Any) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...


class IBuilderConfigRtx(IBuilderConfig, Protocol):
    """The settings that an engine for many GPUs is built with."""

    num_compute_capabilities: int

    def set_flag(self, flag: Any) -> None: ...

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...


def load(target: Target) -> Any:
    """Import the target's module and return it; raises ImportError."""
    return importlib.import_module(target.package)


def collecting_logger(trt: TensorRT | TensorRTBuilder) -> tuple[Any, list[str]]:
    """Return a logger that collects errors, and the list that it collects them in."""
    messages: list[str] = []
    severity = trt.ILogger.Severity

    class Logger(cast(type, trt.ILogger)):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                messages.append(" ".join(message.split()))

    return Logger(), messages
