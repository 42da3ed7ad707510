"""An untrained model whose scores tell pictures apart, for measuring parity and speed without a trained one."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from glia_export.parity import read_pictures, run_model
from glia_rt.contract import Contract
from glia_train.models.glianet import GLIANet, ModelConfig
from glia_train.models.table import untrained

SCORE_RANGE: Final = (1.0, 5.0)


def telling_model(backbone: str) -> tuple[GLIANet, Contract]:
    """Return a model with random weights, calibrated so that the selftest's photographs score from 1 to 5.

    Random weights tell photographs apart less well than trained ones. Parity cannot be measured on a model whose scores
    hardly differ, because half of its range would be rounding. So the head reads the features along the direction in
    which the photographs differ most, as a trained head would.

    Args:
        backbone: Name of a timm ViT.

    Returns:
        The model in eval mode, and its contract. Every call makes the same model.

    Raises:
        UsageError: GLIANet cannot use this backbone.
    """
    model, contract = untrained(ModelConfig(backbone=backbone))
    photographs = read_pictures([], contract)
    features = run_model(model, photographs).features  # (6, D)
    _, _, directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    low, high = SCORE_RANGE
    with torch.no_grad():
        model.head.weight[0] = torch.from_numpy(directions[0])
        raw = run_model(model, photographs).scores
        scale = (high - low) / float(np.ptp(raw))
        model.calibration.copy_(torch.tensor([scale, low - scale * float(raw.min())]))
    return model, contract.with_range(*SCORE_RANGE)
