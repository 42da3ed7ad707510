"""The fragment sampler as a torch module: `glia_rt.sampler`'s arithmetic, in operators that ONNX and TensorRT take.

Resize with antialias is refused by TensorRT, so the global view is two matrix products with weights computed from the
picture's size inside the graph. Everything that must be exact is integer arithmetic: positions, and the bilinear
weights of small pictures with Pillow's 22 fraction bits. In int32 throughout, since OpenVINO computes int64 in 32 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glia_rt.contract import Contract
from glia_rt.sampler import WEIGHT_BITS


class Sampler(nn.Module):
    """uint8 pictures of one size -> both views.

    The fragments are `glia_rt.sampler`'s. The global view is off by at most one grey level, on 0.1 % of the values
    where both sides have 32 pixels or more. float32 rounds a few halves the other way: where a side is shorter, the
    second pass spreads one over a whole column, seldom as two levels; where it is 336, two thirds of which are 224,
    halves are frequent, and 0.2 % differ.
    """

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.contract = contract
        self.cell: Tensor
        self.within: Tensor
        cell, within = (torch.arange(n, dtype=torch.int32) for n in (contract.grid, contract.fragment))
        self.register_buffer("cell", cell.repeat_interleave(contract.fragment))
        self.register_buffer("within", within.repeat(contract.grid))

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
        sides = torch.stack([_size(pixels.shape[1]), _size(pixels.shape[2])])  # (2, 1)
        before, after, weight = self._neighbours(sides)
        upper, lower = pixels.index_select(1, before[0]), pixels.index_select(1, after[0])  # (N, 224, W, 3)
        across, down = weight[1].view(1, 1, -1, 1), weight[0].view(1, -1, 1, 1)
        upper = _blend(upper.index_select(2, before[1]), upper.index_select(2, after[1]), across)
        lower = _blend(lower.index_select(2, before[1]), lower.index_select(2, after[1]), across)
        return _blend(upper, lower, down)

    def _neighbours(self, sides: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each mosaic pixel along height and width, the two source pixels around it and the second one's weight.

        Of a picture that is large enough the enlarged sides are the sides themselves, and every weight is 0.

        Args:
            sides: Height and width, int32 (2, 1).

        Returns:
            int32 (2, view_size) each; weights times 2**22.
        """
        view, grid, fragment = self.contract.view_size, self.contract.grid, self.contract.fragment
        shorter = sides.amin(dim=0)
        enlarged = torch.where(shorter < view, (view * sides + shorter - 1) // shorter, sides)
        position = torch.minimum(self.cell * (enlarged // grid), enlarged - fragment) + self.within
        # It lies at (position + 1/2) * side / enlarged - 1/2 in the picture.
        before, rest = _multiply_divide(2 * position + 1, sides, 2 * enlarged)
        past = rest >= enlarged
        before = torch.where(past, before, before - 1)
        rest = torch.where(past, rest - enlarged, rest + enlarged)
        weight, rest = _multiply_divide(rest, 1 << WEIGHT_BITS, 2 * enlarged)
        weight = torch.where(rest >= enlarged, weight + 1, weight)
        return torch.clamp(before, min=0), torch.minimum(before + 1, sides - 1), weight


def bicubic_weights(side: int, view_size: int, device: torch.device) -> Tensor:
    """Pillow's bicubic weights, float32 (view_size, side); each row sums to 1 within their rounding."""
    n = _size(side)
    pixel = torch.arange(side, dtype=torch.int32, device=device)  # (side,)
    out = torch.arange(view_size, dtype=torch.int32, device=device).view(-1, 1)  # (view_size, 1)
    # |pixel + 1/2 - centre| / scale over a common denominator: whole numbers up to the one division.
    distance = torch.abs((2 * pixel + 1) * view_size - (2 * out + 1) * n)
    unit = 2 * torch.clamp(n, min=view_size)
    # Keys' cubic convolution kernel with a = -1/2, seen from 0 and from 2: float32 rounds these forms least.
    near = distance < unit
    t = torch.where(near, distance, torch.clamp(2 * unit - distance, min=0)).to(torch.float32) / unit
    weights = torch.where(near, 1 - t * t * (5 - 3 * t) / 2, t * t * (t - 1) / 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    # Pillow's fixed point; over a thousand weights, as a side of 65535 has, leaving it out would show.
    return torch.round(weights * (1 << WEIGHT_BITS)) / (1 << WEIGHT_BITS)


def _size(side: int) -> Tensor:
    """A side as an int32 tensor (1,): torch.export cannot divide a symbolic integer, but it can this."""
    return torch.arange(side, dtype=torch.int32)[-1:] + 1


def _multiply_divide(a: Tensor, b: Tensor | int, c: Tensor) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of a * b / c, whose product int32 could not hold: five bits of b at a time.

    Args:
        a: From 0 to c - 1.
        b: From 0 to 2**25 - 1.
        c: From 1 to 2**25: sides up to 65535 ask for 2 * 224 * 65535 at most.
    """
    quotient = remainder = torch.zeros_like(a)
    for shift in (20, 15, 10, 5, 0):
        digit = b // (1 << shift) % 32
        total = remainder * 32 + a * digit
        step = total // c
        quotient = quotient * 32 + step
        remainder = total - step * c
    return quotient, remainder


def _to_grey_levels(x: Tensor) -> Tensor:
    return torch.clamp(torch.floor(x + 0.5), 0, 255)


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """First + (second - first) * weight / 2**22, rounded half up; grey levels in and out.

    Exact in float32, because the weight's upper and lower 11 bits are taken one after the other.
    """
    upper = weight // (1 << WEIGHT_BITS // 2)
    lower = weight - upper * (1 << WEIGHT_BITS // 2)
    difference = second - first
    coarse = first + 0.5 + difference * upper / (1 << WEIGHT_BITS // 2)
    whole = torch.floor(coarse)
    return whole + torch.floor(coarse - whole + difference * lower / (1 << WEIGHT_BITS))
