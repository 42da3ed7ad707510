"""RGB pixels -> the two views a GLIANet sees. Training, scoring and verification all call this code.

The global view is the whole picture resized to 224x224. The fragments are a mosaic: the picture is cut into a 7x7 grid
of cells and the 32x32 pixels at the top left of each cell, at full resolution, are put side by side (the paper's
Eq. 1 and 2). `glia_export.sampler` states the same arithmetic as a torch module, for the graphs that take a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from glia_rt import bicubic
from glia_rt.bicubic import WEIGHT_BITS, Pixels
from glia_rt.contract import Contract


class Views(NamedTuple):
    """One picture as the model sees it: two uint8 (224, 224, 3) arrays, RGB."""

    global_view: Pixels
    fragments: Pixels


def make_views(image: Pixels, contract: Contract, rng: np.random.Generator | None = None) -> Views:
    """Sample both views from a picture.

    Args:
        image: uint8 (H, W, 3), RGB, H and W at least 1.
        contract: Sizes of the views.
        rng: None for scoring, where each fragment is its cell's top left corner (Eq. 2). While training, the offset
            of each fragment inside its cell is drawn from it.

    Returns:
        Views of uint8 (view_size, view_size, 3).
    """
    return Views(make_global_view(image, contract), make_fragments(image, contract, rng))


def make_global_view(image: Pixels, contract: Contract) -> Pixels:
    """The whole picture at view_size x view_size, by Pillow's antialiased bicubic, aspect not kept.

    The horizontal pass comes first, always: two calls say so, because Pillow 13 began to choose the order by the
    picture's shape, which moves the pixels of tall pictures by up to ten grey levels.
    """
    size, resample = contract.view_size, Image.Resampling.BICUBIC
    height, width, _ = image.shape
    if height * width >= bicubic.LARGE and bicubic.has_compiler():
        across = Image.fromarray(bicubic.resize_across(image, size))
    else:
        across = Image.fromarray(image).resize((size, height), resample)
    return np.asarray(across.resize((size, size), resample))


def make_fragments(image: Pixels, contract: Contract, rng: np.random.Generator | None = None) -> Pixels:
    """The mosaic of fragments, uint8 (view_size, view_size, 3).

    A picture whose shorter side m is under view_size is taken as enlarged by view_size / m. The enlarged picture is
    never made: only the rows and columns that fragments read are interpolated, so that 1 x 65535 stays cheap.
    """
    height, width, _ = image.shape
    shorter = min(height, width)
    tall, wide = (enlarged_side(n, shorter, contract.view_size) for n in (height, width))
    rows, columns = fragment_positions(tall, wide, contract, rng)  # each (grid * fragment, grid * fragment)
    if shorter >= contract.view_size:
        return image[rows, columns]
    return _read_enlarged(image, rows, columns, tall, wide)


def enlarged_side(side: int, shorter: int, view_size: int) -> int:
    """Length of a side of the picture that fragments are read from, in pixels."""
    return side if shorter >= view_size else (view_size * side + shorter - 1) // shorter


def cell_starts(side: int, contract: Contract) -> npt.NDArray[np.int64]:
    """First pixel of each cell along one side, (grid,): min(i * (side // grid), side - fragment)."""
    return np.minimum(np.arange(contract.grid) * (side // contract.grid), side - contract.fragment)


def fragment_positions(
    height: int, width: int, contract: Contract, rng: np.random.Generator | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which pixel of a height x width picture each pixel of the mosaic shows.

    Returns:
        Rows and columns, two int64 arrays that broadcast to (view_size, view_size).
    """
    cell = np.repeat(np.arange(contract.grid), contract.fragment)  # (view_size,), the cell of each mosaic pixel
    within = np.tile(np.arange(contract.fragment), contract.grid)
    rows = (cell_starts(height, contract)[cell] + within)[:, None]
    columns = (cell_starts(width, contract)[cell] + within)[None, :]
    if rng is None:
        return rows, columns
    cells = (contract.grid, contract.grid)
    down = rng.integers(0, height // contract.grid - contract.fragment + 1, size=cells)
    right = rng.integers(0, width // contract.grid - contract.fragment + 1, size=cells)
    return rows + down[np.ix_(cell, cell)], columns + right[np.ix_(cell, cell)]


def _read_enlarged(
    image: Pixels, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], tall: int, wide: int
) -> Pixels:
    """Pixels (rows, columns) of the picture enlarged bilinearly to tall x wide, as Pillow would compute them."""
    top, bottom, row_weight = neighbours(rows, image.shape[0], tall)
    left, right, column_weight = neighbours(columns, image.shape[1], wide)
    # Pillow works horizontally first and rounds to 8 bits after each pass.
    upper = _blend(image[top, left], image[top, right], column_weight)
    lower = _blend(image[bottom, left], image[bottom, right], column_weight)
    return _blend(upper, lower, row_weight).astype(np.uint8)


def neighbours(
    positions: npt.NDArray[np.int64], side: int, enlarged: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The two source pixels around each position of the enlarged side, and the second one's weight times 2**22."""
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
