"""Bundle -> a model of NVIDIA Triton Inference Server: a `tensorrt` plan, or the ONNX file for ONNX Runtime.

Triton forms the batches and does not pad them. A picture's score may therefore differ in its last digits with the batch
that it was in. The layout of the folder and the fields of the configuration follow `model_repository.md` and
`model_configuration.md` in triton-inference-server/server.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from glia_rt import files
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import SCORE, GraphKind
from glia_rt.errors import BundleError, OutputExistsError, UsageError

CONFIG: Final = "config.pbtxt"
#: The message for a user who has a TensorRT for RTX engine and asks for a Triton model.
NO_RTX: Final = (
    "Triton cannot serve TensorRT for RTX engines: its tensorrt backend loads those of `tensorrt`; "
    "build with --target tensorrt, or without an engine, for Triton's ONNX Runtime backend"
)

# How long a request waits for others to share its batch. The time is long enough for a burst to share a batch. It is
# under half of the time that one picture takes: AITemplate publishes 1.02 ms for a ViT-B/16 pass in FP16 on an A100,
# and a score takes 2.1 such passes. No batch sizes are preferred, because Triton advises against them if there is one
# optimization profile.
_MAX_QUEUE_DELAY_US: Final = 1000

_PLAN: Final = 'platform: "tensorrt_plan"'
# A graph in FP32 must be computed in FP32. ONNX Runtime's CUDA provider computes it in TF32 unless told not to.
_ONNX: Final = """\
backend: "onnxruntime"
optimization { execution_accelerators { gpu_execution_accelerator [
  { name: "cuda" parameters { key: "use_tf32" value: "0" } }
] } }"""


def write_repository(
    folder: str | os.PathLike[str],
    bundle: Bundle,
    *,
    input: GraphKind = "views",
    precision: str | None = None,
    engine: Path | None = None,
    max_batch: int = 64,
    overwrite: bool = False,
) -> Path:
    """Write a bundle into a Triton model repository, as `folder/NAME/config.pbtxt` and `folder/NAME/1/model.*`.

    NAME is the name of the bundle. Every character except ASCII letters, digits, `_` and `-` is replaced by `_`.
    Clients of the model send uint8 (N, H, W, 3), as the graph takes them, and get `score` as float32 (N, 1).

    Args:
        folder: The model repository. It is made if only its last part is missing.
        bundle: The bundle to serve.
        input: "views" (the inputs of the contract) or "image". With an engine, it must be the engine's own input.
        precision: Which ONNX file to serve without an engine: "fp16" or "fp32". "fp16" needs a Triton with ONNX Runtime
            1.27 or later. 1.24 has no CUDA kernel for the Attention nodes of the file and leaves them to the CPU. None
            for FP16, or for FP32 if the bundle has no FP16 file.
        engine: A `tensorrt` plan of this bundle, checked by the caller. None for the bundle's ONNX file.
        max_batch: Largest batch, pictures. It must not exceed the largest batch of the engine's profile.
        overwrite: Replace the model if it exists.

    Returns:
        The model's folder, `folder/NAME`.

    Raises:
        UsageError: The precision does not exist, the largest batch is under 1, the folder cannot be made, or something
            that is no Triton model is in the model's place.
        OutputExistsError: The model exists and overwrite is False.
        BundleError: The ONNX file is not the one that was exported, or the engine does not exist.
    """
    precision = precision or bundle.gpu_precision(input)
    if (input, precision) not in GRAPHS:
        raise UsageError(f"a bundle has no {input} graph in {precision}: take fp16 or fp32")
    if max_batch < 1:
        raise UsageError(f"max_batch is {max_batch}; Triton batches from 1 up")
    target = checked_target(folder, bundle, overwrite=overwrite)
    folder = target.parent
    if engine is None:
        source, filename, runtime = bundle.checked_file(GRAPHS[input, precision]), "model.onnx", _ONNX
    elif engine.is_file():
        source, filename, runtime = engine, "model.plan", _PLAN
    else:
        raise BundleError(f"{engine} does not exist; `glia-rt build {bundle.path} --target tensorrt` builds it")
    with ExitStack() as stack:
        try:
            folder.mkdir(exist_ok=True)
            new = stack.enter_context(files.whole_folder(target))
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}; give another --triton") from error
        (new / "1").mkdir()
        shutil.copyfile(source, new / "1" / filename)
        (new / CONFIG).write_text(_config(target.name, runtime, bundle, input, max_batch))
    return target


def checked_target(folder: str | os.PathLike[str], bundle: Bundle, *, overwrite: bool) -> Path:
    """Return the folder that a model would be written to, after checking that it can be written.

    A caller that has long work to do before the write calls this first.

    Raises:
        UsageError: The repository cannot be made, or something that is no Triton model is in the model's place.
        OutputExistsError: The model exists and overwrite is False.
    """
    folder = Path(folder)
    # The path is not resolved, because a link to a bundle has a name of its own. Dots are replaced, because Triton
    # would read the name as NAME.BACKEND.
    target = folder / re.sub(r"[^A-Za-z0-9_-]", "_", bundle.path.absolute().stem)
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent} is not a folder: make it first")
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} exists; give --overwrite to replace it, or another --triton")
    if target.is_symlink() or (target.exists() and not (target / CONFIG).is_file()):
        raise UsageError(f"{target} is no Triton model, so it is not replaced: move it away, or give another --triton")
    return target


def _config(name: str, runtime: str, bundle: Bundle, input: GraphKind, max_batch: int) -> str:
    """Return the model's configuration in protobuf's text format."""
    shapes = {
        key: [-1 if side is None else side for side in shape] for key, shape in bundle.contract.shapes(input).items()
    }
    inputs = ",\n".join(f'  {{ name: "{key}" data_type: TYPE_UINT8 dims: {dims} }}' for key, dims in shapes.items())
    sizes = "" if input == "views" else "\n# Only requests of one shape share a batch: send pictures of one size."
    return f"""\
# Identity of the bundle, the sha256 of its manifest.json: {bundle.identity}
name: "{name}"
{runtime}
max_batch_size: {max_batch}{sizes}
input [
{inputs}
]
# The graph's output is (N,), and Triton wants at least one dimension beside the batch: clients get (N, 1).
output [
  {{ name: "{SCORE}" data_type: TYPE_FP32 dims: [1] reshape {{ shape: [] }} }}
]
dynamic_batching {{ max_queue_delay_microseconds: {_MAX_QUEUE_DELAY_US} }}
instance_group [
  {{ kind: KIND_GPU }}
]
"""
