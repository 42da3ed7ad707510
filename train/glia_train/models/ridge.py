"""Ridge: a linear head on the statistics of a pretrained convolutional network's feature maps, of both views.

This is the baseline that a GLIANet on the same stem has to beat. With a frozen stem, its head is a ridge regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glia_rt.contract import ModelInput
from glia_train.models.base import Model, Stage
from glia_train.models.glianet import VIEWS
from glia_train.ridge_head import RidgeHead
from glia_train.stem import Stem, statistics


@dataclass(frozen=True)
class RidgeConfig:
    """What fixes the architecture.

    Attributes:
        backbone: Name of a stem in `glia_train.stem`.
        tune_backbone: Whether the stem is trained too.
        dropout: Dropout probability before the head, while training.
    """

    backbone: str = "efficientnet_lite0"
    tune_backbone: bool = False
    dropout: float = 0.1


class Ridge(Model):
    """A linear head on the mean and the deviation of every channel of a stem, of two uint8 views of a picture."""

    family = "ridge"
    Config = RidgeConfig

    def __init__(self, config: RidgeConfig) -> None:
        stem = Stem(config.backbone)
        super().__init__(config, stem.config.mean, stem.config.std)
        self.stem = stem
        self.ridge_head: RidgeHead = RidgeHead(2 * len(VIEWS) * sum(stem.channels), config.dropout)
        self.stem.requires_grad_(config.tune_backbone)

    @classmethod
    def inputs(cls, config: RidgeConfig) -> tuple[ModelInput, ...]:
        """Return the two inputs of the paper's GLIANet."""
        return VIEWS

    def stages(self) -> dict[str, Stage]:
        """Return the stem."""
        return {"stem": Stage((self.stem,))}

    def backbones(self) -> dict[str, nn.Module]:
        """Return the stem."""
        return {"stem": self.stem}

    def features(self, *inputs: Tensor) -> Tensor:
        """Return the statistics (N, 1984) of four feature maps of each input.

        Args:
            inputs: Both inputs, in the contract's order, uint8 (N, 224, 224, 3), RGB.
        """
        return torch.cat([statistics(self.stem(self.normalise(view))) for view in inputs], dim=1)

    def raw_score(self, features: Tensor) -> Tensor:
        """Return the head's output, float32 (N,)."""
        raw: Tensor = self.ridge_head(features)
        return raw
