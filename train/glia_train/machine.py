"""The device and the precision that PyTorch computes with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from glia_train.models.base import Model

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Machine:
    """The device and the precision of a run.

    Attributes:
        device: The first GPU, or the CPU.
        precision: Precision of the model's matrix products while training and measuring. The head is always float32.
    """

    device: torch.device
    precision: Precision

    @classmethod
    def here(cls, precision: Precision | None = None) -> Machine:
        """Return the best that this machine has: a GPU before the CPU, and bf16 if the hardware computes in it.

        Args:
            precision: The precision, if it is not to be the best one.
        """
        if torch.cuda.is_available():
            device, bf16 = "cuda", torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            device, bf16 = "cpu", torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return cls(torch.device(device), precision or ("bf16" if bf16 else "fp32"))

    @property
    def name(self) -> str:
        """Return the name of the device."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def raw_score(self, model: Model, inputs: Sequence[Tensor]) -> Tensor:
        """Return scores before calibration, float32 (N,), on the device."""
        with self.autocast():
            features = model.features(*(one.to(self.device) for one in inputs))
        return model.raw_score(features)

    def autocast(self) -> torch.autocast:
        """Return the context in which matrix products are of `precision`."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)
