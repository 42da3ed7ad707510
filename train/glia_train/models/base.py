"""What a family of models must provide. Training, checkpoints and export speak to this class and to no family.

A new family is one file beside this one, a line in the table of `glia_train.models`, and its tests:

    @dataclass(frozen=True)
    class LinearConfig:
        size: int = 16

    class Linear(Model):
        family = "linear"
        Config = LinearConfig

        def __init__(self, config: LinearConfig) -> None:
            super().__init__(config)
            self.linear = nn.Linear(3 * config.size**2, 1)

        @classmethod
        def inputs(cls, config: LinearConfig) -> tuple[ModelInput, ...]:
            return (ModelInput("picture", Resize(config.size)),)

        def features(self, picture: Tensor) -> Tensor:
            return self.normalise(picture).flatten(1)

        def raw_score(self, features: Tensor) -> Tensor:
            return self.linear(features).squeeze(-1)

Shapes: N pictures, D the width of what the head reads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from glia_rt.contract import Contract, ModelInput

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Stage:
    """A part of a model that half precision converts whole, or keeps in float32.

    Attributes:
        modules: What belongs to it. Their inputs and outputs are watched for activations that half cannot hold.
        parameters: What belongs to it besides the parameters of the modules.
        attends: Whether attention is computed in it. TensorRT builds no float32 Attention operator, so one such stage
            in float32 is enough for a graph without that operator.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...] = ()
    attends: bool = False


class Model(nn.Module):
    """A model of one family.

    A family sets `family` and `Config`, and defines `__init__(config)`, `inputs`, `features` and `raw_score`. It may
    define `stages`, `backbones` and `form`.

    Attributes:
        config: The options that it was made with, a `Config`.
        pixels: Mean and standard deviation of pixels in [0, 1], per channel; what `normalise` starts with.
        calibration: float32 (2,), the linear map (scale, offset) from raw scores to label units; (1, 0) until fitted.
            A checkpoint holds it beside the weights.
    """

    #: The name of the family in checkpoints and bundles.
    family: ClassVar[str]
    #: A frozen dataclass: everything that fixes the architecture. Its fields are JSON types.
    Config: ClassVar[type[Any]]

    mean: Tensor
    std: Tensor
    calibration: Tensor

    def __init__(self, config: Any, mean: Triple = (0.5, 0.5, 0.5), std: Triple = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.config = config
        self.pixels: tuple[Triple, Triple] = (mean, std)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]), persistent=False)

    @classmethod
    @abstractmethod
    def inputs(cls, config: Any) -> tuple[ModelInput, ...]:
        """Return the inputs of a model of this config, in the order in which `features` takes them."""

    @abstractmethod
    def features(self, *inputs: Tensor) -> Tensor:
        """Return what the head reads, (N, D).

        Args:
            inputs: As the contract has them: uint8 (N, *shape).
        """

    @abstractmethod
    def raw_score(self, features: Tensor) -> Tensor:
        """Return the score before calibration, float32 (N,): what the loss sees, and what the calibration is fitted to.

        Args:
            features: As `features` gives them.
        """

    def stages(self) -> dict[str, Stage]:
        """Return the parts that half precision may keep in float32 one by one, by name, in the order they run.

        What is in no stage stays in float32. A stage casts its own inputs to the type of its weights.
        """
        return {}

    def backbones(self) -> dict[str, nn.Module]:
        """Return the pretrained networks inside, by the name of their attribute.

        Their weights come from elsewhere (`glia_train.backbones`). An adapter-only checkpoint leaves out the frozen
        ones, those of which no parameter requires a gradient.
        """
        return {}

    def contract(self) -> Contract:
        """Return the contract of this model, without a score range until it is calibrated."""
        mean, std = self.pixels
        return Contract(inputs=self.inputs(self.config), mean=mean, std=std)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return raw scores, float32 (N,); arguments as `features`."""
        return self.raw_score(self.features(*inputs))

    def score(self, *inputs: Tensor) -> Tensor:
        """Return scores in label units, float32 (N,); arguments as `features`."""
        return self.calibrated(self(*inputs))

    def calibrated(self, raw: Tensor) -> Tensor:
        """Return raw scores in label units, float32 (N,)."""
        return raw * self.calibration[0] + self.calibration[1]

    def normalise(self, view: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) -> float32 (N, 3, S, S), (v / 255 - mean) / std per channel."""
        x = view.to(torch.float32).permute(0, 3, 1, 2)
        gain = (1 / (255 * self.std)).view(1, 3, 1, 1)
        shift = (self.mean / self.std).view(1, 3, 1, 1)
        return x * gain - shift

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen backbones stay in eval mode."""
        super().train(mode)
        for backbone in self.frozen_backbones().values():
            backbone.eval()
        return self

    def frozen_backbones(self) -> Mapping[str, nn.Module]:
        """Return the backbones that are not trained."""
        return {
            name: backbone
            for name, backbone in self.backbones().items()
            if not any(parameter.requires_grad for parameter in backbone.parameters())
        }

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser sees."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
