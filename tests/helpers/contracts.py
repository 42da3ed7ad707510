"""The contract of a GLIANet, for tests that need no model."""

from __future__ import annotations

from typing import Any

from glia_rt.contract import Contract, Fragments, ModelInput, Resize, Score
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.views import make_inputs

VIEW_SIZE = 224

#: Heights and widths that twins of the rules are held to numpy over: one pixel, sides around the views' size, square,
#: portrait, landscape, panorama, odd; tall ones, of which Pillow 13 takes the passes in the other order.
SIZES = [
    *[(1, 1), (1, 300), (300, 1), (31, 500), (32, 33), (223, 224), (224, 223), (224, 224), (225, 300), (225, 449)],
    *[(336, 336), (677, 333), (900, 301), (100, 1000), (3001, 223), (480, 640), (1000, 1500)],
]
#: The longest JPEG, sides of one pixel, and 12 megapixels.
LARGE_SIZES = [(640, 4801), (1, 65535), (65535, 1), (3000, 4000), (4000, 3000)]
RESIZE = Resize(VIEW_SIZE)
FRAGMENTS = Fragments(VIEW_SIZE, 7, 32)


def make_contract(score_range: tuple[float, float] | None = None, **fields: Any) -> Contract:
    """Both views, and mean and std of one half."""
    values: dict[str, Any] = {
        "inputs": (ModelInput("global_view", RESIZE), ModelInput("fragments", FRAGMENTS)),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "score": Score(score_range),
    }
    return Contract(**values | fields)


CONTRACT = make_contract()


def make_views(image: Pixels) -> dict[str, Pixels]:
    """Both views of a picture, as scoring makes them."""
    return make_inputs(image, CONTRACT)
