"""A family whose input is several crops, (N, K, S, S, 3), made by a rule of its own, with the rule's two twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from glia_rt.contract import ModelInput
from glia_train.models.base import Model

CROPS = 3


@dataclass(frozen=True)
class Corners:
    """The top left corner of the picture, moved by one pixel for each crop. Pictures must be larger than the crops."""

    rule: ClassVar[str] = "corners"
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (CROPS, self.size, self.size, 3)


def corners(image: npt.NDArray[np.uint8], rule: Any, _rng: object) -> npt.NDArray[np.uint8]:
    return np.stack([image[k : k + rule.size, k : k + rule.size] for k in range(CROPS)])


class CornersTwin(nn.Module):
    def __init__(self, rule: Corners) -> None:
        super().__init__()
        self.size = rule.size

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.stack([pixels[:, k : k + self.size, k : k + self.size] for k in range(CROPS)], 1)


@dataclass(frozen=True)
class CropsConfig:
    #: The input's name; the exporter has values of some names inside its graphs.
    name: str = "linear"


class Crops(Model):
    family, Config = "crops", CropsConfig

    def __init__(self, config: CropsConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(3 * 16**2, 1)

    @classmethod
    def inputs(cls, config: CropsConfig) -> tuple[ModelInput, ...]:
        return (ModelInput(config.name, Corners(16)),)

    def features(self, crops: Tensor) -> Tensor:  # type: ignore[override]
        return self.normalise(crops).flatten(2)  # (N, K, D)

    def raw_score(self, features: Tensor) -> Tensor:
        return self.linear(features).mean((1, 2))
