"""A family of ten lines: one input, a linear layer. For tests to which the model does not matter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from glia_rt.contract import ModelInput, Resize
from glia_train.models.base import Model


@dataclass(frozen=True)
class LinearConfig:
    size: int = 16


class Linear(Model):
    family, Config = "linear", LinearConfig

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(3 * config.size**2, 1)

    @classmethod
    def inputs(cls, config: LinearConfig) -> tuple[ModelInput, ...]:
        return (ModelInput("picture", Resize(config.size)),)

    def features(self, picture: Tensor) -> Tensor:  # type: ignore[override]
        return self.normalise(picture).flatten(1)

    def raw_score(self, features: Tensor) -> Tensor:
        return self.linear(features).squeeze(-1)
