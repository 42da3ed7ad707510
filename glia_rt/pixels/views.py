"""The rules that make a model's inputs from a picture, in numpy. Training, scoring and verification all call this code.

Each rule of the contract has one function here, which is the reference. Its twins in torch (`glia_export.views`) and on
a GPU (`glia_rt.backends.cuda.views`) are held to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from glia_rt.contract import Contract, Fragments, Resize
from glia_rt.pixels import bicubic
from glia_rt.pixels.bicubic import WEIGHT_BITS, Pixels

Positions = npt.NDArray[np.int64]


def make_inputs(image: Pixels, contract: Contract, rng: np.random.Generator | None = None) -> dict[str, Pixels]:
    """Return a model's inputs of one picture.

    Args:
        image: uint8 (H, W, 3), RGB, H and W at least 1.
        contract: Which inputs to make, and by which rules.
        rng: None for scoring, where every rule is deterministic. In training, the rules draw their random choices from
            it.

    Returns:
        The inputs by name, each uint8 of the input's shape.
    """
    return {one.name: RULES[one.rule.rule](image, one.rule, rng) for one in contract.inputs}


def resize(image: Pixels, rule: Resize, rng: np.random.Generator | None = None) -> Pixels:
    """Return the whole picture at size x size, by Pillow's antialiased bicubic; the aspect is not kept.

    The horizontal pass always comes first. It is a call of its own, because in a single call Pillow 13 chooses the
    order by the shape of the picture, which moves the pixels of tall pictures by up to ten grey levels. This rule makes
    no random choice.
    """
    size, resample = rule.size, Image.Resampling.BICUBIC
    height, width, _ = image.shape
    if height * width >= bicubic.LARGE and bicubic.has_compiler():
        across = Image.fromarray(bicubic.resize_across(image, size))
    else:
        across = Image.fromarray(image).resize((size, height), resample)
    return np.asarray(across.resize((size, size), resample))


def fragments(image: Pixels, rule: Fragments, rng: np.random.Generator | None = None) -> Pixels:
    """Return the mosaic of fragments, uint8 (size, size, 3).

    Each fragment is the top left corner of its cell (Eq. 2). With `rng`, its offset inside the cell is drawn at random,
    as in the training of FAST-VQA.

    A picture whose shorter side m is under `size` is treated as if enlarged by size / m. The enlarged picture is never
    made: only the rows and columns that fragments read are interpolated, so that a picture of 1 x 65535 stays cheap.
    """
    height, width, _ = image.shape
    shorter = min(height, width)
    tall, wide = (enlarged_side(n, shorter, rule.size) for n in (height, width))
    tops, lefts = _fragment_corners(tall, wide, rule, rng)
    if shorter < rule.size:
        return _read_enlarged(image, *_pixels_of(tops, lefts, rule), tall, wide)
    # Copying whole fragments takes a tenth of the time of reading the mosaic pixel by pixel.
    places = sliding_window_view(image, (rule.fragment, rule.fragment), axis=(0, 1))  # (H - f + 1, W - f + 1, 3, f, f)
    mosaic = places[tops, lefts].transpose(0, 3, 1, 4, 2)  # (grid, f, grid, f, 3)
    return mosaic.reshape(rule.size, rule.size, 3)


class _Rule(Protocol):
    def __call__(self, image: Pixels, rule: Any, rng: np.random.Generator | None = None) -> Pixels: ...


#: The function of every rule of the contract, by the rule's name.
RULES: Final[Mapping[str, _Rule]] = {Resize.rule: resize, Fragments.rule: fragments}


def enlarged_side(side: int, shorter: int, size: int) -> int:
    """Return the length of a side of the picture that fragments are read from, in pixels."""
    return side if shorter >= size else (size * side + shorter - 1) // shorter


def cell_starts(side: int, rule: Fragments) -> npt.NDArray[np.int64]:
    """Return the first pixel of each cell along one side, (grid,): min(i * (side // grid), side - fragment)."""
    return np.minimum(np.arange(rule.grid) * (side // rule.grid), side - rule.fragment)


def fragment_positions(height: int, width: int, rule: Fragments) -> tuple[Positions, Positions]:
    """Return which pixel of a height x width picture each pixel of the mosaic shows, in scoring.

    Returns:
        Rows (size, 1) and columns (1, size), int64.
    """
    rows, columns = _pixels_of(*_fragment_corners(height, width, rule, None), rule)
    return rows[:, :1], columns[:1]


def _fragment_corners(
    height: int, width: int, rule: Fragments, rng: np.random.Generator | None
) -> tuple[Positions, Positions]:
    """Return the row and the column of the top left pixel of each fragment, both (grid, grid)."""
    cells = (rule.grid, rule.grid)
    tops = np.broadcast_to(cell_starts(height, rule)[:, None], cells)
    lefts = np.broadcast_to(cell_starts(width, rule)[None, :], cells)
    if rng is None:
        return tops, lefts
    down = rng.integers(0, height // rule.grid - rule.fragment + 1, size=cells)
    right = rng.integers(0, width // rule.grid - rule.fragment + 1, size=cells)
    return tops + down, lefts + right


def _pixels_of(tops: Positions, lefts: Positions, rule: Fragments) -> tuple[Positions, Positions]:
    """Return the row and the column of each pixel of the mosaic, both (size, size), from the fragments' corners."""
    cell = np.repeat(np.arange(rule.grid), rule.fragment)  # (size,), the cell of each mosaic pixel
    within = np.tile(np.arange(rule.fragment), rule.grid)
    return tops[np.ix_(cell, cell)] + within[:, None], lefts[np.ix_(cell, cell)] + within[None, :]


def _read_enlarged(
    image: Pixels, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], tall: int, wide: int
) -> Pixels:
    """Return pixels (rows, columns) of the picture enlarged bilinearly to tall x wide, as Pillow computes them."""
    top, bottom, row_weight = neighbours(rows, image.shape[0], tall)
    left, right, column_weight = neighbours(columns, image.shape[1], wide)
    # Pillow works horizontally first and rounds to 8 bits after each pass.
    upper = _blend(image[top, left], image[top, right], column_weight)
    lower = _blend(image[bottom, left], image[bottom, right], column_weight)
    return _blend(upper, lower, row_weight).astype(np.uint8)


def neighbours(
    positions: npt.NDArray[np.int64], side: int, enlarged: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the two source pixels around each position of the enlarged side, and the second's weight times 2**22."""
    # Position p lies at (p + 1/2) * side / enlarged - 1/2; over the denominator 2 * enlarged this is an integer.
    numerator = (2 * positions + 1) * side - enlarged
    below = numerator // (2 * enlarged)
    remainder = numerator - below * 2 * enlarged
    weight = ((remainder << WEIGHT_BITS) + enlarged) // (2 * enlarged)  # rounded to nearest
    return np.clip(below, 0, side - 1), np.clip(below + 1, 0, side - 1), weight


def _blend(
    first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], weight: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    total = first.astype(np.int64) << WEIGHT_BITS
    total += (second.astype(np.int64) - first) * weight[..., None]
    return (total + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS
