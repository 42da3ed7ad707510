"""The fragment sampler as a torch module: `glia_rt.sampler`'s arithmetic, in operators that ONNX and TensorRT take.

Resize with antialias is refused by TensorRT, so the global view is two matrix products with weights computed from the
picture's size inside the graph. Everything that must be exact is integer arithmetic: positions in int64, and the
bilinear weights of small pictures with Pillow's 22 fraction bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glia_rt.contract import Contract
from glia_rt.sampler import WEIGHT_BITS


class Sampler(nn.Module):
    """uint8 pictures of one size -> both views, against Pillow at most one grey level on 0.1 % of the values."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.contract = contract
        self.cell: Tensor
        self.within: Tensor
        self.register_buffer("cell", torch.arange(contract.grid).repeat_interleave(contract.fragment))
        self.register_buffer("within", torch.arange(contract.fragment).repeat(contract.grid))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Sample both views.

        Args:
            image: uint8 (N, H, W, 3), RGB.

        Returns:
            global_view and fragments, float32 (N, 224, 224, 3) holding whole grey levels 0 to 255.
        """
        pixels = image.to(torch.float32)  # TensorRT takes uint8 only where a cast reads it first
        return self.global_view(pixels), self.fragments(pixels)

    def global_view(self, pixels: Tensor) -> Tensor:
        """Pillow's antialiased bicubic: horizontally first, rounded to whole grey levels after each pass."""
        across = bicubic_weights(pixels.shape[2], self.contract.view_size, pixels.device)  # (224, W)
        down = bicubic_weights(pixels.shape[1], self.contract.view_size, pixels.device)  # (224, H)
        x = pixels.transpose(2, 3)  # (N, H, 3, W)
        x = _to_grey_levels(x @ across.t()).transpose(2, 3)  # (N, H, 224, 3)
        n, _, s, c = x.shape
        x = _to_grey_levels(down @ x.flatten(2))  # (N, 224, 224 * 3)
        return x.view(n, s, s, c)

    def fragments(self, pixels: Tensor) -> Tensor:
        """The mosaic, read from the picture as if enlarged where its shorter side is under view_size."""
        height, width = _size(pixels.shape[1]), _size(pixels.shape[2])
        shorter = torch.minimum(height, width)
        top, bottom, row_weight = self._neighbours(height, shorter)
        left, right, column_weight = self._neighbours(width, shorter)
        upper, lower = pixels.index_select(1, top), pixels.index_select(1, bottom)  # (N, 224, W, 3)
        upper = _blend(upper.index_select(2, left), upper.index_select(2, right), column_weight.view(1, 1, -1, 1))
        lower = _blend(lower.index_select(2, left), lower.index_select(2, right), column_weight.view(1, 1, -1, 1))
        return _blend(upper, lower, row_weight.view(1, -1, 1, 1))

    def _neighbours(self, side: Tensor, shorter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each mosaic pixel along one side, the two source pixels around it and the second one's weight x 2**22.

        Of a picture that is large enough the enlarged side is the side itself, and every weight is 0.
        """
        view, grid, fragment = self.contract.view_size, self.contract.grid, self.contract.fragment
        base = torch.clamp(shorter, max=view)
        enlarged = (view * side + base - 1) // base
        enlarged = torch.where(shorter < view, enlarged, side)
        starts = torch.minimum(self.cell * (enlarged // grid), enlarged - fragment)
        numerator = (2 * (starts + self.within) + 1) * side - enlarged
        # Shifted by one pixel so that the division is of a positive number, where all runtimes round alike.
        below = (numerator + 2 * enlarged) // (2 * enlarged) - 1
        remainder = numerator - below * 2 * enlarged
        weight = (remainder * (1 << WEIGHT_BITS) + enlarged) // (2 * enlarged)
        last = side - 1
        zero = torch.zeros_like(below)
        return (
            torch.minimum(torch.maximum(below, zero), last),
            torch.minimum(torch.maximum(below + 1, zero), last),
            weight.to(torch.int32),
        )


def bicubic_weights(side: int, view_size: int, device: torch.device) -> Tensor:
    """Pillow's bicubic weights, float32 (view_size, side); each row sums to 1 within their rounding."""
    n = _size(side)
    pixel = torch.arange(side, device=device)  # (side,)
    out = torch.arange(view_size, device=device).view(-1, 1)  # (view_size, 1)
    # (pixel + 1/2 - centre) / scale over a common denominator: whole numbers up to the one division.
    numerator = (2 * pixel + 1) * view_size - (2 * out + 1) * n
    denominator = 2 * torch.clamp(n, min=view_size)
    t = torch.abs(numerator.to(torch.float32) / denominator.to(torch.float32))
    # Keys' cubic convolution kernel with a = -1/2.
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
    weights = weights / weights.sum(dim=1, keepdim=True)
    # Pillow's fixed point; over a thousand weights, as a side of 65535 has, leaving it out would show.
    return torch.round(weights * (1 << WEIGHT_BITS)) / (1 << WEIGHT_BITS)


def _size(side: int) -> Tensor:
    """A side as an int64 tensor (1,): torch.export cannot divide a symbolic integer, but it can this."""
    return torch.arange(side)[-1:] + 1


def _to_grey_levels(x: Tensor) -> Tensor:
    return torch.clamp(torch.floor(x + 0.5), 0, 255)


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """First + (second - first) * weight / 2**22, rounded half up, exact in int32; float32 in and out."""
    a, b = first.to(torch.int32), second.to(torch.int32)
    half = 1 << (WEIGHT_BITS - 1)
    total = a * (1 << WEIGHT_BITS) + (b - a) * weight + half
    return (total // (1 << WEIGHT_BITS)).to(torch.float32)
