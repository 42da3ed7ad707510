"""The device and the precision that PyTorch computes with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
        return model.raw_score(self.features(model, inputs))

    def features(self, model: Model, inputs: Sequence[Tensor]) -> Tensor:
        """Return what the head reads, (N, D), on the device."""
        with self.autocast():
            return model.features(*(one.to(self.device) for one in inputs))

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute the matrix products inside the block in `precision`."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            if torch.is_grad_enabled() and self._has_slow_attention():
                with _AttentionOfProducts():
                    yield
            else:
                yield

    def _has_slow_attention(self) -> bool:
        # PyTorch 2.14's fused attention for the CPU has a backward pass in bf16 that takes three times as long as that
        # of plain matrix products. Its forward pass is quicker, and so is its backward pass in float32. On a processor
        # with AMX this has not been measured.
        return self.device.type == "cpu" and self.precision == "bf16" and not torch.cpu._is_amx_tile_supported()


class _AttentionOfProducts(TorchFunctionMode):
    """Computes attention as two matrix products and a softmax, where PyTorch's fused operator is called."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`; or compute it, if it is attention without a mask, dropout, or other options."""
        kwargs = kwargs or {}
        plain = len(args) == 3 and not any(isinstance(value, Tensor) or value for value in kwargs.values())
        if func is not F.scaled_dot_product_attention or not plain:
            return func(*args, **kwargs)
        q, k, v = args
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return weights @ v
