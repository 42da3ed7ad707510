"""A half-precision copy of a model, and the activations that decide which of its blocks must stay in float32.

Half holds numbers up to 65,504, and the activations of some ViTs come near. PyTorch's half on the CPU overflows as a
GPU does, which the runtimes' CPU paths do not, so this copy is also what FP16's parity is measured with.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from glia_train.model import GLIANet

#: A block with a larger |activation| stays in float32: a quarter of what half can hold.
LARGEST_HALF_ACTIVATION: Final = 16_000.0

EMBEDDING: Final = "embedding"
PROJECTION: Final = "projection"


def largest_activations(model: GLIANet, views: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Largest |activation| of the embedding, the projection and each block, over both streams and all of `views`.

    A block is a ViT block with the GLIA block before it, the last one with the final norm after it; the inputs and
    outputs of all modules inside count. NaN where there was one.

    Args:
        model: In float32 and eval mode.
        views: Batches of (global_view, fragments), uint8 (N, 224, 224, 3).
    """
    largest: dict[str, float] = {}

    def watch(name: str, root: nn.Module) -> list[Any]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            tensors = inputs + (outputs if isinstance(outputs, tuple) else (outputs,))
            peaks = [float(t.detach().abs().max()) for t in tensors if isinstance(t, Tensor)]
            largest[name] = float(np.max([largest.get(name, 0.0), *peaks]))  # the builtin max may drop a NaN

        return [module.register_forward_hook(hook) for module in root.modules()]

    vit = model.backbone
    handles = watch(EMBEDDING, vit.patch_embed) + watch(EMBEDDING, vit.patch_drop) + watch(EMBEDDING, vit.norm_pre)
    handles += watch(PROJECTION, model.projection)
    for i, (block, glia) in enumerate(zip(vit.blocks, model.glia, strict=True)):
        handles += watch(f"block {i}", block) + watch(f"block {i}", glia)
    handles += watch(f"block {len(model.glia) - 1}", vit.norm)
    try:
        with torch.inference_mode():
            for global_view, fragments in views:
                model(global_view, fragments)
    finally:
        for handle in handles:
            handle.remove()
    return largest


def float32_blocks(activations: Mapping[str, float]) -> list[str]:
    """Names of the parts that half cannot hold safely."""
    # Not <=, so that NaN and infinity are kept out of half as well.
    return [name for name, peak in activations.items() if not peak <= LARGEST_HALF_ACTIVATION]


def half_copy(model: GLIANet, keep_float32: Iterable[str] = ()) -> GLIANet:
    """A copy with half weights and activations.

    Float32 stay: the pixels' normalisation, the head and the calibration, always; and the parts named in
    `keep_float32`. LayerNorm takes and gives half, and computes in float32 inside.
    """
    keep = set(keep_float32)
    half = copy.deepcopy(model)
    vit = half.backbone
    vit.norm.half()
    for i, (block, glia) in enumerate(zip(vit.blocks, half.glia, strict=True)):
        if f"block {i}" not in keep:
            block.half()
            glia.half()
    if PROJECTION not in keep:
        half.projection.half()
    if EMBEDDING not in keep:
        vit.patch_embed.half()
        vit.norm_pre.half()
        for parameter in vit.parameters(recurse=False):  # cls token, registers, positions
            parameter.data = parameter.data.half()
    if f"block {len(half.glia) - 1}" in keep:
        vit.norm.float()  # it reads what the last block writes
    return half
