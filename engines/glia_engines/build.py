"""NAME.glia -> NAME.glia/engines/: builds the TensorRT engines of a bundle.

One builder serves both TensorRT libraries. It takes the library as a module.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import onnx

from glia_engines import kernels
from glia_engines.rewrite import write_out_attention
from glia_rt import files
from glia_rt.backends.cuda import tensorrt_api
from glia_rt.backends.cuda.device import Gpu, why_no_gpu
from glia_rt.backends.cuda.engine import (
    LEAST_PORTABLE,
    TARGETS,
    EngineRecord,
    Profile,
    Target,
    engine_path,
    record_path,
    system,
)
from glia_rt.backends.cuda.tensorrt_api import IBuilderConfigRtx, TensorRTBuilder, TensorRTBuilderRtx
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import Contract, GraphKind
from glia_rt.errors import BackendError, BundleError, MissingPackageError, OutputExistsError, UsageError
from glia_rt.steps import log_end
from glia_rt.versions import __version__

#: Smallest, usual and largest batch.
DEFAULT_BATCH: Final = (1, 32, 64)

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        path: Path of the engine.
        record: Record of the engine. It is stored beside the engine.
    """

    path: Path
    record: EngineRecord


def build(
    bundle_path: str | os.PathLike[str],
    target: str,
    *,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    input: GraphKind = "views",
    sizes: tuple[Size, Size, Size] | None = None,
    precision: str | None = None,
    capabilities: Sequence[str] = (),
    device: int | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Build one engine of a bundle.

    Args:
        bundle_path: The bundle. Where it cannot be written, the engine goes to the user's data folder.
        target: "tensorrt-rtx", which needs no GPU on this machine, or "tensorrt", which builds on the GPU it is for.
        batch: Smallest, usual and largest batch. The engine is fastest at the usual one.
        input: Which graph: "views" takes the model's inputs, "image" takes decoded pictures and makes the inputs.
        sizes: Smallest, usual and largest (height, width) of a picture, for input "image".
        precision: Which of the bundle's files: "fp16" or "fp32". The graph decides the types. None for FP16, or for
            FP32 if the bundle has no FP16 file.
        capabilities: Compute capabilities, for example "8.9", for "tensorrt-rtx". The default is the set that the
            library considers portable, 8.0 to 12.
        device: Number of the GPU to build on, for "tensorrt". The default is the first one.
        overwrite: Replace the engine if it exists.
        report: Called with each stage as it begins.

    Returns:
        The path of the engine, and its record.

    Raises:
        UsageError: An option does not fit this target or graph.
        OutputExistsError: The engine exists and overwrite is False.
        BundleError: The bundle is damaged, or TensorRT cannot read its graph.
        BackendError: The library is missing, the GPU for "tensorrt" is missing, or the build failed.
    """
    if target not in TARGETS:
        raise UsageError(f"no target {target!r}; there are {', '.join(TARGETS)}")
    if (input, precision or "fp16") not in GRAPHS:
        raise UsageError(f"no graph of input {input!r} in precision {precision!r}; take views or image, fp16 or fp32")
    library = TARGETS[target]
    if capabilities and not library.portable:
        raise UsageError(f"--capability is for tensorrt-rtx: {target} builds for one GPU, which --device names")
    if device is not None and library.portable:
        raise UsageError("--device is for tensorrt: tensorrt-rtx builds without a GPU, for what --capability names")
    bundle = Bundle.open(bundle_path)
    precision = precision or bundle.gpu_precision(input)
    profile = make_profile(bundle.contract, batch, input, sizes)
    trt = _load(library)
    gpu = None if library.portable else Gpu.open(device or 0)
    record = EngineRecord(
        target=target,
        library_version=trt.__version__,
        capabilities=_capabilities(trt, capabilities) if gpu is None else (gpu.capability,),
        system=system(),
        input=input,
        precision=precision,
        profile=profile,
        onnx=GRAPHS[input, precision],
        onnx_sha256=bundle.sha256(GRAPHS[input, precision]),
        bundle_identity=bundle.identity,
        engine_sha256="",
        engine_size=0,
        layers={},
        build_seconds=0.0,
        glia_rt=__version__,
    )
    path = engine_path(record, bundle)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; give --overwrite to replace it")
    _require_writable(path.parent)  # refused before the long build, not after it
    graph = bundle.checked_file(record.onnx)
    report(f"build {path.name} with {library.package} {trt.__version__}")
    began = time.monotonic()
    with _on(gpu):
        engine = _engine(trt, library, graph, profile, record.capabilities if capabilities else ())
    log_end(f"build {path.name}", time.monotonic() - began)
    record = dataclasses.replace(
        record,
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        engine_size=len(engine),
        layers=kernels.summary(kernels.read_kernels(engine)),
        build_seconds=round(time.monotonic() - began, 1),
    )
    _write(path, engine, record)
    return Built(path, record)


def make_profile(
    contract: Contract, batch: tuple[int, int, int], input: GraphKind, sizes: tuple[Size, Size, Size] | None
) -> Profile:
    """Return the smallest, usual and largest shape of each input of a graph.

    Raises:
        UsageError: The numbers do not rise, or sizes are missing, or are given for a graph that takes none.
    """
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UsageError(f"--batch {':'.join(map(str, batch))}: give MIN:OPT:MAX, rising from 1 or more, as 1:32:64")
    if input == "views" and sizes is not None:
        raise UsageError("--size is for --input image: views have one size")
    if input == "image" and sizes is None:
        raise UsageError(
            "--input image needs --size MINHxMINW:OPTHxOPTW:MAXHxMAXW, as 224x224:768x1024:3000x4000; memory is set "
            "aside for the greatest"
        )
    for side in (0, 1):
        if sizes is not None and not 1 <= sizes[0][side] <= sizes[1][side] <= sizes[2][side]:
            raise UsageError("--size: heights and widths must rise from least to greatest")

    def shape(name: str, i: int) -> tuple[int, ...]:
        free = iter(sizes[i] if sizes is not None else ())  # height and width, where the contract leaves them open
        return (batch[i], *(next(free) if side is None else side for side in contract.shapes(input)[name]))

    return {name: (shape(name, 0), shape(name, 1), shape(name, 2)) for name in contract.shapes(input)}


def _on(gpu: Gpu | None) -> AbstractContextManager[None]:
    """Make a GPU the current one, which TensorRT builds on and times its kernels on."""
    if gpu is None:
        return nullcontext()
    from cuda.core import Device

    from glia_rt.backends.cuda import lanes

    return lanes.current(Device(gpu.index))


def _capabilities(trt: TensorRTBuilder, named: Sequence[str]) -> tuple[str, ...]:
    """Return the compute capabilities that a portable engine will be built for: those named, or the default."""
    known = capability_names(cast(TensorRTBuilderRtx, trt))
    if unknown := [name for name in named if name not in known]:
        raise UsageError(
            f"tensorrt_rtx {trt.__version__} builds for compute capability {', '.join(known)}, not {', '.join(unknown)}"
        )
    by_itself = [name for name in known if float(name) >= LEAST_PORTABLE]
    return tuple(sorted(set(named or by_itself), key=float))


def _load(library: Target) -> TensorRTBuilder:
    if not library.portable and (reason := why_no_gpu()):
        raise BackendError(f"target {library.name} builds on the GPU it is for: {reason}")
    try:
        return cast(TensorRTBuilder, tensorrt_api.load(library))
    except ModuleNotFoundError as error:
        raise MissingPackageError(library.package, library.extra) from error
    except ImportError as error:
        raise BackendError(f"{library.package} is installed but cannot be imported ({error})") from error


def _engine(trt: TensorRTBuilder, library: Target, graph: Path, profile: Profile, capabilities: Sequence[str]) -> bytes:
    logger, errors = tensorrt_api.collecting_logger(trt)
    builder: tensorrt_api.Builder = trt.Builder(logger)
    # The flag is looked up by name, because its bit differs between versions. In versions where all networks are
    # strongly typed it does nothing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: tensorrt_api.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse(write_out_attention(onnx.load(graph)).SerializeToString()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BundleError(f"{library.package} {trt.__version__} cannot read {graph}: {' '.join(reasons.split())}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 is on by default, and FP32 must mean FP32
    if library.portable:
        # The engine then allocates nothing while it runs, without which its runs could not be captured.
        cast(IBuilderConfigRtx, config).set_flag(cast(TensorRTBuilderRtx, trt).BuilderFlag.REQUIRE_USER_ALLOCATION)
    if capabilities:
        _set_capabilities(cast(TensorRTBuilderRtx, trt), cast(IBuilderConfigRtx, config), capabilities)
    config.add_optimization_profile(_optimization_profile(builder, profile))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendError(f"{library.package} {trt.__version__} built no engine from {graph}: {'; '.join(errors)}")
    return bytes(engine)


def _optimization_profile(builder: tensorrt_api.Builder, profile: Profile) -> tensorrt_api.IOptimizationProfile:
    shapes = builder.create_optimization_profile()
    for name, (least, usual, greatest) in profile.items():
        shapes.set_shape(name, least, usual, greatest)
    return shapes


def _set_capabilities(trt: TensorRTBuilderRtx, config: IBuilderConfigRtx, capabilities: Sequence[str]) -> None:
    known = capability_names(trt)
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        if not config.set_compute_capability(known[capability], i):
            raise BackendError(f"tensorrt_rtx {trt.__version__} does not take compute capability {capability}")


def capability_names(trt: TensorRTBuilderRtx) -> Mapping[str, object]:
    """Return the library's own list of compute capabilities, by name: SM89 is "8.9", SM120 is "12.0"."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def _write(path: Path, engine: bytes, record: EngineRecord) -> None:
    """Write both files by rename, the record last.

    An engine without its record is refused, so a write that breaks off never leaves a wrong record.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record_path(path).unlink(missing_ok=True)
        files.write_whole(path, engine)
        files.write_whole(record_path(path), record.to_json())
    except OSError as error:
        raise _not_writable(path.parent, str(error.strerror)) from error


def _require_writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise _not_writable(folder, "it is no folder")
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(there, os.W_OK):
        raise _not_writable(folder, "no permission")


def _not_writable(folder: Path, reason: str) -> UsageError:
    return UsageError(f"{folder} cannot be written ({reason}); copy the bundle to a folder that can, and build there")
