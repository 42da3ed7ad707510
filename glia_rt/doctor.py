"""The examination of this machine: what works on it, and what the rest needs."""

from __future__ import annotations

from dataclasses import dataclass

from glia_rt.backends.choose import BACKENDS, default_precision, unavailable
from glia_rt.backends.cuda.device import list_gpus
from glia_rt.backends.onnxruntime import DISTRIBUTIONS, installed_twice
from glia_rt.errors import BackendError
from glia_rt.versions import installed_versions

PACKAGES = (
    "numpy", "pillow", "simplejpeg", "numba", *DISTRIBUTIONS, "openvino", "tensorrt", "tensorrt_rtx",
    "cuda-core", "ray", "torch", "timm", "onnx",
)  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """The findings of `examine`.

    Attributes:
        gpus: Rows of index, name, compute capability and the driver's CUDA version; or why there are none.
        backends: Rows of name, "yes" or "no", default precision, and remark.
        packages: Rows of name and version, for each installed package.
        warnings: What is wrong with the installation.
    """

    gpus: list[list[str]] | str
    backends: list[list[str]]
    packages: list[list[str]]
    warnings: list[str]


def examine() -> Findings:
    """Examine every GPU, backend and package."""
    gpus: list[list[str]] | str
    try:
        gpus = [[str(gpu.index), gpu.name, gpu.capability, gpu.cuda] for gpu in list_gpus()]
    except BackendError as error:
        gpus = str(error)
    backends = []
    for name in BACKENDS:
        reason = unavailable(name)
        backends.append([name, "no" if reason else "yes", "" if reason else default_precision(name), reason or ""])
    packages = [[name, version] for name, version in installed_versions(*PACKAGES).items()]
    warnings = []
    if installed_twice():
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrote each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    return Findings(gpus, backends, packages, warnings)
