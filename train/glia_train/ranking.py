"""Pairs of distorted copies of a picture, of which the less distorted one shall score higher."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from glia_rt.pixels.bicubic import Pixels
from glia_train.distortions import DISTORTIONS, LEVELS, MIN_SIDE, UNORDERED, distort

#: Distortions that no training sees, one of each kind: blur, noise, compression, colour, spatial. Whether scores fall
#: with their levels tells what a model has learned beyond the others.
HELD_OUT: Final = ("lens_blur", "impulse_noise", "jpeg2000", "color_diffusion", "jitter")
#: Distortions that pairs are made by.
RANKED: Final = tuple(name for name in DISTORTIONS if name not in (*HELD_OUT, *UNORDERED))
#: Rated pictures in a batch for each pair.
RATED_PER_PAIR: Final = 8
#: Difference that the scores of a pair shall have, as a share of the deviation of a batch's scores.
MARGIN: Final = 0.25


def distorted_copy(pixels: Pixels, rng: np.random.Generator, *, worse: bool) -> Pixels:
    """Return one picture of a pair: the worse one, or the better one.

    A distortion and two of its levels are drawn. Level 0 is the picture itself. Levels 1 leave it as it is, or nearly
    so, and are never the worse ones.

    Args:
        pixels: uint8 RGB (H, W, 3). A picture with a side under 32 pixels is not distorted.
        rng: Source of all draws. The same state gives the two pictures of one pair.
        worse: Which of the two to make.
    """
    name = RANKED[rng.integers(len(RANKED))]
    high = int(rng.integers(2, LEVELS + 1))
    low = int(rng.integers(0, high))
    level = high if worse else low
    return pixels if level == 0 or min(pixels.shape[:2]) < MIN_SIDE else distort(pixels, name, level, rng)


def ranking_loss(better: Tensor, worse: Tensor, deviation: Tensor) -> Tensor:
    """Return the mean of max(0, MARGIN - (better - worse) / deviation), a scalar.

    Args:
        better: float32 (P,), raw scores of the better picture of each pair.
        worse: float32 (P,), those of the worse one.
        deviation: float32 (), the deviation of a batch's raw scores. No gradient flows through it.
    """
    return F.relu(MARGIN - (better - worse) / deviation.detach().clamp_min(1e-6)).mean()
