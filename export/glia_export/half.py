"""A half-precision copy of a model, and the activations that decide which of its stages must stay in float32.

Half precision holds numbers up to 65,504, and the activations of some ViTs come near that. PyTorch's half precision on
the CPU overflows as a GPU does, while the CPU paths of the runtimes do not. So the parity of FP16 is measured with this
copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from glia_train.models.base import Model

#: A stage with a larger |activation| stays in float32. The value is a quarter of what half precision can hold.
LARGEST_HALF_ACTIVATION: Final = 16_000.0


def largest_activations(model: Model, batches: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """Return the largest |activation| of each stage over all batches, by the stage's name.

    The inputs and outputs of all modules inside a stage count. The value is NaN if any activation is NaN.

    Args:
        model: A model in float32 and eval mode.
        batches: Batches of inputs, in the contract's order.
    """
    largest: dict[str, float] = {}

    def watch(name: str, root: nn.Module) -> list[Any]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            tensors = inputs + (outputs if isinstance(outputs, tuple) else (outputs,))
            peaks = [float(t.detach().abs().max()) for t in tensors if isinstance(t, Tensor)]
            largest[name] = float(np.max([largest.get(name, 0.0), *peaks]))  # the builtin max may drop a NaN

        return [module.register_forward_hook(hook) for module in root.modules()]

    stages = model.stages()
    handles = [handle for name, stage in stages.items() for module in stage.modules for handle in watch(name, module)]
    try:
        with torch.inference_mode():
            for inputs in batches:
                model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: largest[name] for name in stages if name in largest}


def float32_stages(activations: Mapping[str, float]) -> list[str]:
    """Return the names of the stages that half precision cannot hold safely."""
    # `not peak <= limit` is true for NaN and infinity as well, so such a stage stays in float32.
    return [name for name, peak in activations.items() if not peak <= LARGEST_HALF_ACTIVATION]


def half_copy(model: Model, keep_float32: Iterable[str] = ()) -> Model:
    """Return a copy whose stages have half weights and activations, except the stages named in `keep_float32`.

    What is in no stage stays in float32: the normalisation of the pixels, the head and the calibration. LayerNorm takes
    and returns half, and computes in float32 inside.
    """
    keep = set(keep_float32)
    half = copy.deepcopy(model)
    for name, stage in half.stages().items():
        if name not in keep:
            for module in stage.modules:
                module.half()
            for parameter in stage.parameters:
                parameter.data = parameter.data.half()
    return half
