"""The rules of the contract as torch modules: `glia_rt.pixels.views` in operators that ONNX and TensorRT take.

TensorRT refuses Resize with antialias. So `resize` is two passes of matrix products, whose weights are computed inside
the graph from the picture's size.

Pillow's 8-bit resampling is fixed-point arithmetic. At some sizes a sum often lies halfway between two grey levels, and
other arithmetic may round it the other way. So everything here is whole numbers too. Positions and weights are int64.
Weights are rounded to Pillow's 22 fraction bits, and are multiplied in two parts, each small enough for float32 to be
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from glia_rt.contract import Contract, Fragments, Resize
from glia_rt.pixels.bicubic import WEIGHT_BITS


class Views(nn.Module):
    """A module that makes the inputs of a contract from uint8 pictures of one size, as `glia_rt.pixels.views` does.

    The inputs are equal to the bit for sides up to 3,584 pixels. A longer side has so many weights that float32 may
    round a sum. Hardly any value differs then, by one grey level. No side may be over 65,535 pixels, because the int64
    of the weights would overflow.
    """

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.rules = nn.ModuleList(TWINS[one.rule.rule](one.rule) for one in contract.inputs)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return all inputs of pictures.

        Args:
            image: uint8 (N, H, W, 3), RGB.

        Returns:
            The inputs in the contract's order, float32 (N, *shape), which hold whole grey levels 0 to 255.
        """
        pixels = image.to(torch.float32)  # TensorRT takes uint8 only where a cast reads it first
        return tuple(rule(pixels) for rule in self.rules)


class ResizeTwin(nn.Module):
    """The twin of the rule `resize`."""

    def __init__(self, rule: Resize) -> None:
        super().__init__()
        self.size = rule.size

    def forward(self, pixels: Tensor) -> Tensor:
        """Return pictures resized by Pillow's antialiased bicubic, float32 (N, size, size, 3).

        The horizontal pass comes first. Each pass rounds to whole grey levels.
        """
        across = bicubic_weights(pixels.shape[2], self.size, pixels.device)  # (size, W)
        down = bicubic_weights(pixels.shape[1], self.size, pixels.device)  # (size, H)
        x = _weigh(across, pixels.permute(0, 1, 3, 2))  # (N, H, 3, size)
        x = _weigh(down, x.permute(0, 3, 2, 1))  # (N, size columns, 3, size rows)
        return x.permute(0, 3, 1, 2)


class FragmentsTwin(nn.Module):
    """The twin of the rule `fragments`."""

    def __init__(self, rule: Fragments) -> None:
        super().__init__()
        self.rule = rule
        self.cell: Tensor
        self.within: Tensor
        self.register_buffer("cell", torch.arange(rule.grid).repeat_interleave(rule.fragment))
        self.register_buffer("within", torch.arange(rule.fragment).repeat(rule.grid))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the mosaic, float32 (N, size, size, 3).

        A picture whose shorter side is under the rule's size is read as if it were enlarged.
        """
        height, width = _size(pixels.shape[1]), _size(pixels.shape[2])
        shorter = torch.minimum(height, width)
        top, bottom, row_weight = self._neighbours(height, shorter)
        left, right, column_weight = self._neighbours(width, shorter)
        upper, lower = pixels.index_select(1, top), pixels.index_select(1, bottom)  # (N, size, W, 3)
        upper = _blend(upper.index_select(2, left), upper.index_select(2, right), column_weight.view(1, 1, -1, 1))
        lower = _blend(lower.index_select(2, left), lower.index_select(2, right), column_weight.view(1, 1, -1, 1))
        return _blend(upper, lower, row_weight.view(1, -1, 1, 1))

    def _neighbours(self, side: Tensor, shorter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the two source pixels around each mosaic pixel along a side, and the second's weight x 2**22.

        If the picture is large enough, the enlarged side is the side itself, and every weight is 0.
        """
        size, grid, fragment = self.rule.size, self.rule.grid, self.rule.fragment
        enlarged = torch.where(shorter < size, (size * side + shorter - 1) // shorter, side)
        position = torch.minimum(self.cell * (enlarged // grid), enlarged - fragment) + self.within
        # In the picture the mosaic pixel lies at (position + 1/2) * side / enlarged - 1/2.
        numerator = (2 * position + 1) * side - enlarged
        before = numerator // (2 * enlarged)
        rest = numerator - before * 2 * enlarged
        weight = (rest * (1 << WEIGHT_BITS) + enlarged) // (2 * enlarged)
        return torch.clamp(before, min=0), torch.minimum(before + 1, side - 1), weight.to(torch.int32)


#: The twin of every rule of the contract, by the rule's name.
TWINS: Final[Mapping[str, Callable[[Any], nn.Module]]] = {Resize.rule: ResizeTwin, Fragments.rule: FragmentsTwin}


def bicubic_weights(side: int, view_size: int, device: torch.device) -> Tensor:
    """Return Pillow's bicubic weights times 2**22, int64 (view_size, side).

    Each row sums to 2**22, up to the rounding of the weights.
    """
    n = _size(side)
    pixel = torch.arange(side, device=device)  # (side,)
    out = torch.arange(view_size, device=device).view(-1, 1)  # (view_size, 1)
    # t = |pixel + 1/2 - centre| / scale is numerator / denominator. The denominator is at most 2 * 65535.
    numerator = torch.abs((2 * pixel + 1) * view_size - (2 * out + 1) * n)
    denominator = 2 * torch.clamp(n, min=view_size)
    t, one = torch.minimum(numerator, 2 * denominator), denominator
    # Keys' cubic convolution kernel with a = -1/2, times 2 * denominator**3; it ends at t = 2.
    near = (3 * t - 5 * one) * t * t + 2 * one * one * one
    far = ((5 * one - t) * t - 8 * one * one) * t + 4 * one * one * one
    # For long sides the last 8 bits are dropped, because the division below needs the room. They are far below the 22
    # bits that are wanted.
    kernel = torch.where(t < one, near, far) // torch.where(n > 1 << 14, 1 << 8, 1)
    # Long division gives kernel / total as a binary fraction of 22 digits. kernel * 2**22 would not fit int64.
    total = kernel.sum(dim=1, keepdim=True)
    rest = torch.abs(kernel)
    fraction = torch.zeros_like(rest)
    for digits in (8, 8, WEIGHT_BITS - 16):
        rest = rest * (1 << digits)
        quotient = rest // total
        fraction = fraction * (1 << digits) + quotient
        rest = rest - quotient * total
    fraction = fraction + 2 * rest // total  # rounded to nearest
    return torch.where(kernel < 0, -fraction, fraction)


def _weigh(weights: Tensor, pixels: Tensor) -> Tensor:
    """Return weighted sums (..., view_size) of grey levels (..., side), rounded and clipped as Pillow does.

    The grey levels are whole numbers. Both products sum whole numbers under 2**24, which float32 holds exactly: each
    term is 11 bits of weight by 8 bits of pixel, and a side of up to 3,584 pixels has few enough weights.
    """
    half_bits = WEIGHT_BITS // 2
    low = (weights + (1 << (half_bits - 1))) % (1 << half_bits) - (1 << (half_bits - 1))
    high = (weights - low) // (1 << half_bits)
    upper = (pixels @ high.to(torch.float32).t()).to(torch.int32)
    lower = (pixels @ low.to(torch.float32).t()).to(torch.int32)
    total = upper * (1 << half_bits) + lower + (1 << (WEIGHT_BITS - 1))
    return torch.clamp(total // (1 << WEIGHT_BITS), 0, 255).to(torch.float32)


def _size(side: int) -> Tensor:
    """Return a side as an int64 tensor (1,), because torch.export cannot divide a symbolic integer."""
    return torch.arange(side)[-1:] + 1


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of two grey levels, weighted by 2**22 - weight and weight, and rounded half up.

    Input and output are float32. The arithmetic is int32, and exact.
    """
    a, b = first.to(torch.int32), second.to(torch.int32)
    total = a * (1 << WEIGHT_BITS) + (b - a) * weight + (1 << (WEIGHT_BITS - 1))
    return (total // (1 << WEIGHT_BITS)).to(torch.float32)
