"""The base class of all families of models, which defines what a family must provide.

Training, checkpoints and export use this class alone, and no family by name. A new family is one file beside this one,
a line in `glia_train.models.table`, and its tests:

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

Shapes: N pictures, D the width of the features, which the head reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from glia_rt.contract import Contract, ModelInput
from glia_train.ridge_head import RidgeHead

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Stage:
    """A part of a model that is either converted to half precision as a whole or kept in float32.

    Attributes:
        modules: The modules of the stage. Their inputs and outputs are watched for activations that half cannot hold.
        parameters: The parameters of the stage that belong to none of its modules.
        attends: Whether the stage computes attention. TensorRT builds no float32 Attention operator. So if one such
            stage is in float32, the whole graph does without that operator.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...] = ()
    attends: bool = False


class Model(nn.Module, ABC):
    """A model of one family.

    A family sets `family` and `Config`, and defines `__init__(config)`, `inputs`, `features` and `raw_score`. It may
    define `stages`, `backbones`, and `precomputed_input` with `precompute`.

    Attributes:
        config: The `Config` that the model was made with.
        pixels: Mean and standard deviation of pixels in [0, 1], per channel. They are the first values of the buffers
            `mean` and `std`, which `normalise` uses.
        ridge_head: A head that ridge regression can fit before the first step, or None. It reads the last features.
        calibration: float32 (2,), the linear map (scale, offset) from raw scores to the model's scale. It is (1, 0)
            until it is fitted. A checkpoint holds it beside the weights.
    """

    #: The name of the family in checkpoints and bundles.
    family: ClassVar[str]
    #: A frozen dataclass of everything that fixes the architecture. Its fields are JSON types.
    Config: ClassVar[type[Any]]

    mean: Tensor
    std: Tensor
    calibration: Tensor

    def __init__(self, config: Any, mean: Triple = (0.5, 0.5, 0.5), std: Triple = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.config = config
        self.ridge_head: RidgeHead | None = None
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
        """Return the features (N, D), which the head reads.

        Args:
            inputs: The inputs of the contract, in its order, uint8 (N, *shape). One of them may be what `precompute`
                returned instead, which has a floating-point type.
        """

    @abstractmethod
    def raw_score(self, features: Tensor) -> Tensor:
        """Return the scores before calibration, float32 (N,).

        The loss compares these scores with the labels, and the calibration is fitted to them.

        Args:
            features: (N, D), what `features` returns.
        """

    def stages(self) -> dict[str, Stage]:
        """Return the stages by name, in the order they run.

        Half precision may keep each stage in float32 on its own. What is in no stage stays in float32. A stage casts
        its own inputs to the dtype of its weights.
        """
        return {}

    def backbones(self) -> dict[str, nn.Module]:
        """Return the pretrained networks inside the model, by the name of their attribute.

        `glia_train.backbones` loads their weights. An adapter-only checkpoint leaves out the frozen backbones. A
        backbone is frozen if none of its parameters requires a gradient.
        """
        return {}

    def precomputed_input(self) -> str | None:
        """Return the name of the input that nothing but frozen layers read, or None.

        Training keeps what these layers make of it, and gives that to `features` in place of the input.
        """
        return None

    def precompute(self, view: Tensor) -> Tensor:
        """Return what the frozen layers make of the input that `precomputed_input` names, (N, ...).

        Args:
            view: uint8 (N, *shape).
        """
        raise NotImplementedError(f"family {self.family} has no input that only frozen layers read")

    def contract(self) -> Contract:
        """Return the contract of this model, without the score range that a calibrated model has."""
        mean, std = self.pixels
        return Contract(inputs=self.inputs(self.config), mean=mean, std=std)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return raw scores, float32 (N,); arguments as for `features`."""
        return self.raw_score(self.features(*inputs))

    def score(self, *inputs: Tensor) -> Tensor:
        """Return scores on the model's scale, float32 (N,); arguments as for `features`."""
        return self.calibrated(self(*inputs))

    def calibrated(self, raw: Tensor) -> Tensor:
        """Return raw scores (N,) converted to the model's scale, float32 (N,)."""
        return raw * self.calibration[0] + self.calibration[1]

    def normalise(self, view: Tensor) -> Tensor:
        """Return (v / 255 - mean) / std per channel: uint8 (N, ..., S, S, 3) -> float32 (N, ..., 3, S, S).

        The cast comes first, because TensorRT takes uint8 nowhere else. So a model of crops (N, K, S, S, 3) folds K
        into the batch after this step.
        """
        x = view.to(torch.float32).movedim(-1, -3)
        gain = (1 / (255 * self.std)).view(3, 1, 1)
        shift = (self.mean / self.std).view(3, 1, 1)
        return x * gain - shift

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or to eval mode. Frozen backbones stay in eval mode."""
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
        """Return the parameters that the optimiser updates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
