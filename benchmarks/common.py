"""What the benchmarks share: the machine's name, a model with random weights, its inputs, and a closed loop."""

from __future__ import annotations

import itertools
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glia_export.export import export
from glia_export.parity import SELFTEST
from glia_rt.bench import closed_loop
from glia_rt.contract import Contract
from glia_rt.machine import cpu_count
from glia_train.checkpoint import make_checkpoint
from glia_train.models.base import Model
from glia_train.models.glianet import ModelConfig
from glia_train.models.table import untrained

#: Length of each timing in a closed loop, seconds.
SECONDS = 4.0
#: The packages whose versions are written beside the figures.
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "numpy", "pillow")


def hardware() -> str:
    """Return the processor, its cores and its matrix instructions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    known = ("amx_tile", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())}, {cpu_count()} cores, {' '.join(flags)}"


def random_bundle(backbone: str, folder: Path) -> tuple[Model, Path]:
    """Return a GLIANet with random weights, and the bundle that is exported from it."""
    model, contract = untrained(ModelConfig(backbone=backbone))
    checkpoint = folder / f"{backbone}.pt"
    make_checkpoint(model, contract, "random").save(checkpoint)
    return model, export(checkpoint, report=lambda stage: print(f"export: {stage}", file=sys.stderr)).path


def random_inputs(contract: Contract, batch: int) -> dict[str, np.ndarray]:
    """Return a batch of inputs of noise. The amount of work does not depend on what they show."""
    rng = np.random.default_rng(batch)
    return {one.name: rng.integers(0, 256, (batch, *one.shape), dtype=np.uint8) for one in contract.inputs}


def throughput(run: Callable[[Any], object], inputs: Mapping[str, np.ndarray], threads: int = 1) -> float:
    """Return the pictures per second of `run`, called from `threads` threads at once."""
    batch = len(next(iter(inputs.values())))
    # The least number of calls is low, because one call of ViT-B takes seconds on a CPU.
    return batch * closed_loop(lambda: run(inputs), seconds=SECONDS, least=1, warm_up=2, callers=threads).rate


def make_jpegs(folder: Path, width: int, height: int, count: int) -> Path:
    """Write JPEGs of the given size and return their folder.

    They are the selftest's photographs, turned and enlarged. Added grain makes them compress like photos.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    photographs = [Image.open(path).convert("RGB") for path in sorted(SELFTEST.glob("*.png"))]
    for i, photograph in zip(range(min(count, 24)), itertools.cycle(photographs)):
        turned = photograph.rotate(90 * (i // len(photographs)), expand=True)
        pixels = np.asarray(turned.resize((width, height), Image.Resampling.BICUBIC), np.float32) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg", quality=90)
    for i in range(24, count):
        shutil.copyfile(folder / f"{i % 24:04}.jpg", folder / f"{i:04}.jpg")
    return folder
