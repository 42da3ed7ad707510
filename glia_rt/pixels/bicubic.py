"""Pillow's antialiased bicubic resize, bit for bit: its weights, and its horizontal pass compiled by numba.

The horizontal pass over a picture of 12 megapixels takes more than half of the time that its views take. The compiled
pass reads the pixels as the decoder returns them. Pillow first copies them into a layout of its own.
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

#: Fewest pixels of a picture for which compiling pays. Importing numba takes longer than many a smaller picture takes.
LARGE: Final = 1 << 21

#: The number of samples that make a pixel of the result is rounded up to a multiple of this, so that they fill whole
#: vectors. The pass over a picture of 12 MP takes 18 ms with 32, 20 ms with 64, and 30 ms with 1.
_LANES: Final = 32

Pixels = npt.NDArray[np.uint8]


@functools.lru_cache(maxsize=64)
def bicubic_table(side: int, size: int) -> npt.NDArray[np.int32]:
    """Return Pillow's weights for one pass, side -> size pixels: Keys' cubic convolution, a = -1/2, antialiased.

    Returns:
        int32 (1 + taps, size), read-only. For each pixel of the result, row 0 is the first source pixel it is made of.
        The other rows are the weights, times 2**22, of that source pixel and of those after it. All source pixels lie
        inside the picture. Those beyond the filter weigh 0.
    """
    # The floating-point operations are in Pillow's order. Another order may round a weight the other way.
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
    table.flags.writeable = False  # the cache gives every caller the same array
    return table


@functools.cache
def has_compiler() -> bool:
    """Return whether numba, which the extra `fast` installs, can be imported."""
    try:
        importlib.import_module("numba")
    except ImportError:  # not installed, or not made for this numpy
        return False
    return True


def resize_across(image: Pixels, width: int) -> Pixels:
    """Return the picture after the horizontal pass, as Pillow's `resize` to (width, H) gives it.

    The pass needs numba, which compiles it on first use.

    Args:
        image: uint8 (H, W, 3), C-contiguous.
        width: Width of the result, in pixels.

    Returns:
        uint8 (H, width, 3).
    """
    height, side, _ = image.shape
    out = np.empty((height, width, 3), np.uint8)
    arguments = (image.reshape(height, 3 * side), *_samples(side, width), out)
    try:
        _compiled()(*arguments)
    except OSError:  # the disk of numba's cache is full; numba finds out when all is compiled
        _compiled()(*arguments)
    return out


@functools.lru_cache(maxsize=8)  # few: an entry takes 0.6 MB for pictures 4,000 pixels wide, and 9 MB for 65,535
def _samples(side: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the pass over samples (R, G, B, R, G, B...) instead of pixels.

    For each channel of a pixel of the result, the pass reads N samples in a row. Those of the other channels weigh 0.
    This takes three times as many products, but of samples that lie side by side, and vector instructions compute these
    many times as fast.

    Returns:
        The first sample of each pixel of the result, int64 (width,), and the weights, int32 (width, 3, N).
    """
    first, *weights = bicubic_table(side, width)
    taps = len(weights)
    count = min(-(-3 * taps // _LANES) * _LANES, 3 * side)  # whole vectors: samples left over are done singly
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

    # In many containers, neither this folder nor the user's cache can be written. Each process then compiles anew.
    with contextlib.suppress(RuntimeError):
        across.enable_caching()
    run: Callable[..., None] = across
    return run
