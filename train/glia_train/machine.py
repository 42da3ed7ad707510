"""The device and the precision that PyTorch computes with."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glia_train.models.base import Model

#: Arguments of `torch.conv2d` as layers call it, and the kernel from which its gradient in bf16 is slow.
CONV2D_ARGUMENTS: Final = 7
SLOW_KERNEL: Final = 5

#: Parameters of glibc's mallopt. The first is the greatest number of blocks that get a mapping of their own. The second
#: is the free memory beyond which some is given back; -1 is for never.
M_MMAP_MAX: Final = -4
M_TRIM_THRESHOLD: Final = -1

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
            if torch.is_grad_enabled() and self._has_slow_gradients():
                with _QuickGradients():
                    yield
            else:
                yield

    def _has_slow_gradients(self) -> bool:
        # On a processor with AMX this has not been measured.
        return self.device.type == "cpu" and self.precision == "bf16" and not torch.cpu._is_amx_tile_supported()


def keep_freed_memory() -> None:
    """Tell the C library to keep memory that is freed in this process, for what is computed next.

    A step of training frees gigabytes. glibc gives large blocks back to the system, which clears them before it hands
    them out again. On a CPU a step on a stem took twice as long that way. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


class _QuickGradients(TorchFunctionMode):
    """Computes what PyTorch 2.14 differentiates slowly in bf16 on a CPU in another way.

    Attention becomes two matrix products and a softmax. The backward pass of the fused operator takes three times as
    long. Its forward pass is quicker, and so is its backward pass in float32.

    Some convolutions in groups, such as depthwise ones, stay in float32. In bf16 the gradient of the input takes three
    to a hundred times as long if the stride is 2, and that of the weights twice as long if the kernel is 5 x 5.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or compute it in the quicker way."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            if len(args) == 3 and not any(isinstance(value, Tensor) or value for value in kwargs.values()):
                q, k, v = args
                return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        elif func is torch.conv2d and len(args) == CONV2D_ARGUMENTS:
            x, weight, bias, stride, _, _, groups = args
            steps = stride if isinstance(stride, tuple) else (stride,)
            if groups > 1 and (max(steps) > 1 or weight.shape[-1] >= SLOW_KERNEL):
                with torch.autocast("cpu", enabled=False):
                    return func(x.float(), weight, bias, *args[3:]).bfloat16()
        return func(*args, **kwargs)
