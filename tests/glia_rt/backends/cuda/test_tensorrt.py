"""The two TensorRTs without a GPU: the names that are called exist, and engines are refused for the right reason."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_type_hints

import pytest
import tensorrt_lean
import tensorrt_rtx

from glia_rt import Scorer
from glia_rt.backends.base import BackendOptions
from glia_rt.backends.cuda import tensorrt_api
from glia_rt.backends.cuda.device import Gpu, why_no_gpu
from glia_rt.backends.cuda.engine import find_engines
from glia_rt.backends.cuda.lanes import layout, padded_sizes
from glia_rt.backends.cuda.tensorrt import INVALIDITY, RTX, driver_version, require_valid, runtime_cache_file
from glia_rt.backends.cuda.tensorrt_api import RuntimeRtx, TensorRTRtx
from glia_rt.bundle import Bundle
from glia_rt.errors import BackendError, EngineError, UsageError

RUN = {"Runtime", "ICudaEngine", "IExecutionContext"}
RUN_RTX = {"RuntimeRtx", "IExecutionContextRtx", "ICudaEngineRtx", "IRuntimeConfigRtx", "IRuntimeCacheRtx"}
BUILD = {"Builder", "INetworkDefinition", "OnnxParser", "IOptimizationProfile", "IBuilderConfig", "IBuilderConfigRtx"}
MODULES = {"TensorRT", "TensorRTRtx", "TensorRTBuilder", "TensorRTBuilderRtx"}


def members(name: str) -> set[str]:
    """What a protocol of tensorrt_api asks for."""
    protocol = getattr(tensorrt_api, name)
    own = {member for member in vars(protocol) if not member.startswith("_")}
    return own | set(get_type_hints(protocol, vars(tensorrt_api)))


def test_every_protocol_is_walked() -> None:
    protocols = {name for name, value in vars(tensorrt_api).items() if getattr(value, "_is_protocol", False)}
    assert protocols - {"Protocol"} == RUN | RUN_RTX | BUILD | MODULES


@pytest.mark.parametrize("name", sorted(RUN))
@pytest.mark.parametrize("library", [tensorrt_rtx, tensorrt_lean], ids=lambda library: library.__name__)
def test_the_runners_calls_exist(library: ModuleType, name: str) -> None:
    assert members(name)
    assert members(name) <= set(dir(getattr(library, name)))


@pytest.mark.parametrize("name", sorted(RUN_RTX | BUILD))
def test_the_other_calls_exist_in_tensorrt_rtx(name: str) -> None:
    assert members(name)
    assert members(name) <= set(dir(getattr(tensorrt_rtx, name.removesuffix("Rtx"))))


@pytest.mark.parametrize(
    ("name", "library"),
    [(name, tensorrt_rtx) for name in sorted(MODULES)] + [("TensorRT", tensorrt_lean)],
)
def test_the_modules_have_what_is_taken_from_them(name: str, library: ModuleType) -> None:
    assert members(name)
    assert members(name) <= set(dir(library))


def test_the_values_that_are_named_exist() -> None:
    for library in (tensorrt_rtx, tensorrt_lean):
        assert {"USER_MANAGED"} <= set(dir(library.ExecutionContextAllocationStrategy))
    assert {"WHOLE_GRAPH_CAPTURE", "DISABLED"} <= set(dir(tensorrt_rtx.CudaGraphStrategy))
    assert {"EAGER"} <= set(dir(tensorrt_rtx.DynamicShapesKernelSpecializationStrategy))
    assert {"INVALID"} <= set(dir(tensorrt_rtx.EngineValidity))
    assert {"TF32", "REQUIRE_USER_ALLOCATION"} <= set(dir(tensorrt_rtx.BuilderFlag))
    assert {"STRONGLY_TYPED"} <= set(dir(tensorrt_rtx.NetworkDefinitionCreationFlag))
    assert {"ERROR", "INTERNAL_ERROR"} <= set(dir(tensorrt_lean.ILogger.Severity))


def test_every_reason_against_an_engine_has_its_text() -> None:
    assert set(INVALIDITY) == {name for name in dir(tensorrt_rtx.EngineInvalidityDiagnostics) if name.isupper()}


def refuse(content: bytes) -> None:
    logger, _ = tensorrt_api.collecting_logger(cast(TensorRTRtx, tensorrt_rtx))
    runtime = cast(RuntimeRtx, tensorrt_rtx.Runtime(logger))
    require_valid(cast(TensorRTRtx, tensorrt_rtx), runtime, content)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"#" * 100_000], ids=["empty", "short", "long"])
def test_what_is_no_engine_is_refused_by_the_library_itself(content: bytes) -> None:
    with pytest.raises(EngineError, match="it is no engine of TensorRT for RTX: build it again"):
        refuse(content)


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_driver_the_library_blames_the_driver(plain_engine: Path) -> None:
    """Which is why driver and GPU are looked for first."""
    [(path, _)] = find_engines(Bundle.open(plain_engine), "tensorrt-rtx", "views", "fp16")
    content = path.read_bytes()
    with pytest.raises(BackendError, match="the driver or the CUDA runtime does not work: see nvidia-smi"):
        refuse(content)


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_it_cannot_be_opened_without_a_gpu(plain_engine: Path) -> None:
    with pytest.raises(BackendError, match="NVIDIA driver"):
        RTX.open(Bundle.open(plain_engine), BackendOptions())


# What is compiled on the first start


def test_compiled_kernels_are_kept_by_engine_gpu_and_driver(plain_engine: Path, cache_home: Path) -> None:
    [(_, record)] = find_engines(Bundle.open(plain_engine), "tensorrt-rtx", "views", "fp16")
    gpu = "NVIDIA GeForce RTX 4090"
    path = runtime_cache_file(record, gpu, "580.65.6")
    assert path is not None
    assert path.is_relative_to(cache_home)
    assert path.name == f"{record.engine_sha256[:16]}-NVIDIA-GeForce-RTX-4090-580.65.6.cache"
    assert runtime_cache_file(record, "NVIDIA L4", "580.65.6") != path
    assert runtime_cache_file(record, gpu, "580.82.7") != path


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_nvml_the_version_of_cuda_stands_for_the_driver() -> None:
    assert driver_version(Gpu(0, "NVIDIA L4", "8.9", "13.0")) == "cuda13.0"


def test_no_cache_where_the_user_has_none(plain_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    [(_, record)] = find_engines(Bundle.open(plain_engine), "tensorrt-rtx", "views", "fp16")
    assert runtime_cache_file(record, "NVIDIA L4", "580.65.6") is None


# Sizes that batches are padded to


@pytest.mark.parametrize(
    ("least", "greatest", "batch_size", "sizes"),
    [
        (1, 64, 32, [1, 2, 4, 8, 16, 32, 64]),
        (1, 64, 24, [1, 2, 4, 8, 16, 24, 32, 64]),
        (1, 48, 48, [1, 2, 4, 8, 16, 32, 48]),
        (3, 20, 10, [3, 4, 8, 10, 16, 20]),
        (8, 8, 8, [8]),
    ],
)
def test_padded_sizes(least: int, greatest: int, batch_size: int, sizes: list[int]) -> None:
    assert padded_sizes(least, greatest, batch_size) == sizes


@pytest.mark.parametrize(
    ("shapes", "offsets", "size"),
    [
        # two views of 224 x 224 x 3 = 150528 = 588 * 256 bytes each
        ({"a": (1, 224, 224, 3), "b": (1, 224, 224, 3)}, {"a": 0, "b": 150528, "score": 301056}, 301056 + 256),
        ({"a": (64, 224, 224, 3)}, {"a": 0, "score": 64 * 150528}, 64 * 150528 + 256),
        ({"a": (65, 224, 224, 3)}, {"a": 0, "score": 65 * 150528}, 65 * 150528 + 512),
        ({"a": (3, 5), "b": (3, 257)}, {"a": 0, "b": 256, "score": 1280}, 1536),
    ],
)
def test_the_layout_of_a_batch(shapes: dict[str, tuple[int, ...]], offsets: dict[str, int], size: int) -> None:
    assert layout(shapes) == (offsets, size)


# Arrays in a GPU's memory, where there is none


class OnAGpu:
    """What CuPy, PyCUDA and torch say of an array of theirs."""

    shape = (2, 224, 224, 3)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "|u1", "data": (0xDEAD0000, True), "version": 3}


def test_a_backend_on_the_cpu_refuses_arrays_on_a_gpu(tiny_bundle: Path) -> None:
    with Scorer.open(tiny_bundle, "onnxruntime") as scorer:
        with pytest.raises(UsageError, match="backend onnxruntime does not run on a GPU and takes numpy arrays"):
            scorer.score_views(global_view=OnAGpu(), fragments=OnAGpu())
        with pytest.raises(UsageError, match="does not run on a GPU"):
            scorer.score_batch([OnAGpu()])  # type: ignore[list-item]
