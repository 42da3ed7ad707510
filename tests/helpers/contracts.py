"""The contract of a GLIANet, for tests that need no model."""

from __future__ import annotations

from typing import Any

from glia_rt.contract import Contract, Fragments, ModelInput, Resize, Score
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.views import make_inputs

VIEW_SIZE = 224
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
