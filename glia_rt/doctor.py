"""What works on this machine, and what the rest needs."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from glia_rt.backends import BACKENDS, default_precision, unavailable
from glia_rt.backends.onnxruntime import DISTRIBUTIONS, installed_twice

PACKAGES = ("glia-rt", "numpy", "pillow", *DISTRIBUTIONS, "openvino", "torch", "timm", "onnx")


@dataclass(frozen=True)
class Findings:
    """What `examine` found.

    Attributes:
        backends: Rows of name, "yes" or "no", default precision, remark.
        packages: Rows of name and version, of those that are installed.
        warnings: What is wrong with the installation.
    """

    backends: list[list[str]]
    packages: list[list[str]]
    warnings: list[str]


def examine() -> Findings:
    """Look at every backend and package."""
    backends = []
    for name in BACKENDS:
        reason = unavailable(name)
        backends.append([name, "no" if reason else "yes", "" if reason else default_precision(name), reason or ""])
    packages = []
    for name in PACKAGES:
        try:
            packages.append([name, importlib.metadata.version(name)])
        except importlib.metadata.PackageNotFoundError:
            continue
    warnings = []
    if installed_twice():
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrote each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    return Findings(backends, packages, warnings)
