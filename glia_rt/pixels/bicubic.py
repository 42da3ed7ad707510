"""Pillow's antialiased bicubic, to the bit: its weights, and its horizontal pass compiled by numba.

The horizontal pass over a picture of 12 megapixels is the larger half of making its views, and it wants the pixels as
they come from the decoder, while Pillow copies them into a form of its own first.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Fraction bits of Pillow's 8-bit resampling: weights are rounded to multiples of 2**-22.
WEIGHT_BITS: Final = 22

#: Over so many pixels compiling pays: importing numba takes longer than many a smaller picture.
LARGE: Final = 1 << 21

#: Samples in a whole number of vectors. Of 12 MP the pass takes 18 ms so, 20 ms by 64, 30 ms by 1.
_LANES: Final = 32

Pixels = npt.NDArray[np.uint8]


@functools.lru_cache(maxsize=64)
def bicubic_table(side: int, size: int) -> npt.NDArray[np.int32]:
    """Pillow's weights for one pass, side -> size pixels: Keys' cubic convolution with a = -1/2, antialiased.

    Returns:
        int32 (1 + taps, size), read-only: for each pixel of the result the first one it is made of, then the weights
        times 2**22 of that one and those after it. All lie inside the picture; those beyond the filter weigh 0.
    """
    # In the order of Pillow's floating-point operations: another may round a weight the other way.
    scale = side / size
    stretch = max(scale, 1.0)
    reach = 2 * stretch
    taps = min(2 * math.ceil(reach) + 1, side)
    centre = (np.arange(size) + 0.5) * scale
    first = np.clip((centre - reach + 0.5).astype(np.int64), 0, side - taps)
    t = np.abs((first + np.arange(taps)[:, None] - centre + 0.5) * (1 / stretch))  # (taps, size)
    near = (1.5 * t - 2.5) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * -0.5
    kernel = np.where(t < 1, near, np.where(t < 2, far, 0))
    weights = kernel / kernel.sum(axis=0) * (1 << WEIGHT_BITS)
    table = np.vstack([first, np.trunc(weights + np.copysign(0.5, weights))]).astype(np.int32)
    table.flags.writeable = False  # every caller gets the same one
    return table


@functools.cache
def has_compiler() -> bool:
    """Whether numba, of the extra `fast`, is there."""
    try:
        importlib.import_module("numba")
    except ImportError:  # not installed, or not for this numpy
        return False
    return True


def resize_across(image: Pixels, width: int) -> Pixels:
    """The horizontal pass, as Pillow's `resize` to (width, H) gives it; needs numba, compiles on first use.

    Args:
        image: uint8 (H, W, 3), C-contiguous.
        width: Of the result, pixels.

    Returns:
        uint8 (H, width, 3).
    """
    height, side, _ = image.shape
    out = np.empty((height, width, 3), np.uint8)
    arguments = (image.reshape(height, 3 * side), *_samples(side, width), out)
    try:
        _compiled()(*arguments)
    except OSError:  # the disk of numba's cache is full, which is found once all is compiled
        _compiled()(*arguments)
    return out


@functools.lru_cache(maxsize=8)  # few: for pictures 4,000 pixels wide one has 0.6 MB, for 65,535 it has 9
def _samples(side: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The pass over samples instead of pixels, R, G, B, R, G, B...: where each pixel of the result starts, its weights.

    Weights are (width, 3, N): for each channel N samples in a row, those of other channels weighing 0. So three times
    the products are made, but of samples that lie side by side, which vector instructions do many times as fast.
    """
    first, *weights = bicubic_table(side, width)
    taps = len(weights)
    count = min(-(-3 * taps // _LANES) * _LANES, 3 * side)  # whole vectors: what is left over is done one by one
    start = np.minimum(3 * first.astype(np.int64), 3 * side - count)
    spread = np.zeros((width, 3, count), np.int32)
    shift = 3 * first - start
    for channel in range(3):
        for i, weight in enumerate(weights):
            spread[np.arange(width), channel, shift + 3 * i + channel] = weight
    return start, spread


@functools.cache
def _compiled() -> Callable[..., None]:
    import numba

    half, bits = np.int32(1 << (WEIGHT_BITS - 1)), np.int32(WEIGHT_BITS)

    @numba.njit(nogil=True)
    def across(rows: Any, start: Any, weights: Any, out: Any) -> None:
        count = weights.shape[2]
        for y in range(out.shape[0]):
            for x in range(out.shape[1]):
                samples = rows[y, start[x] : start[x] + count]
                for_red, for_green, for_blue = weights[x, 0], weights[x, 1], weights[x, 2]
                red = green = blue = half
                for i in range(count):
                    sample = np.int32(samples[i])
                    red += sample * for_red[i]
                    green += sample * for_green[i]
                    blue += sample * for_blue[i]
                out[y, x, 0] = min(max(red >> bits, 0), 255)
                out[y, x, 1] = min(max(green >> bits, 0), 255)
                out[y, x, 2] = min(max(blue >> bits, 0), 255)

    # Where neither this folder nor the user's cache can be written, as in many a container, each process compiles.
    with contextlib.suppress(RuntimeError):
        across.enable_caching()
    run: Callable[..., None] = across
    return run
