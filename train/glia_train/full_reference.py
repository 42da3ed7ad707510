"""Full-reference metrics: a number for a distorted picture, measured against the undistorted one.

They replace ratings of people where there are none. They are no ratings: people and a metric disagree most where
distortions of different kinds are compared.
"""

# scikit-image's functions carry no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

#: The shorter side, in pixels, that the authors of SSIM reduce larger pictures to, about.
SSIM_SIDE: Final = 256


@dataclass(frozen=True)
class Metric:
    """A full-reference metric.

    Attributes:
        name: Its key in `METRICS`.
        title: Its name as people know it.
        in_full: What it is, for people to read.
        direction: Its range, and which end is better, for people to read.
        measure: (undistorted, distorted) -> value, both uint8 RGB (H, W, 3) of one shape.
        to_score: value -> label from 1 to 5 that rises with quality.
        label: `to_score` as a formula, for people to read.
    """

    name: str
    title: str
    in_full: str
    direction: str
    measure: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], float]
    to_score: Callable[[float], float]
    label: str


def ssim(reference: npt.NDArray[np.uint8], pixels: npt.NDArray[np.uint8]) -> float:
    """Return the structural similarity of two pictures, the mean over R, G and B.

    The source is Wang, Bovik, Sheikh, Simoncelli: "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 13(4), 2004. The window (Gaussian, sigma 1.5, 11x11) and the constants are the paper's. As its
    authors do, pictures are first reduced by F = round(shorter side / 256), where F is over 1: each value is the mean
    of a block of F x F.

    SSIM is the metric of scikit-image that was made to agree with people. It is bounded, while the PSNR of an
    undistorted picture is infinite. The paper computes it on grey levels alone, where most colour distortions would
    count as none.

    Args:
        reference: uint8 RGB (H, W, 3), both sides at least 11 pixels.
        pixels: uint8 RGB of the same shape.

    Returns:
        A value in [-1, 1]; 1 for equal pictures.
    """
    factor = round(min(reference.shape[:2]) / SSIM_SIDE)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    reduced = (_reduce(reference, factor), _reduce(pixels, factor))
    return float(structural_similarity(*reduced, data_range=255, channel_axis=2, **options))


def _reduce(pixels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[Any]:
    """Return the means of blocks, float64 (H // factor, W // factor, 3). What is left at the edges is dropped."""
    if factor <= 1:
        return pixels
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    means: npt.NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return means


#: The metrics, by the names that commands take.
METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "ssim": Metric(
            name="ssim",
            title="SSIM",
            in_full="structural similarity (SSIM, Wang et al. 2004), the mean over R, G and B",
            direction="at most 1, higher is better",
            measure=ssim,
            to_score=lambda value: 1 + 4 * max(0.0, value),
            label="1 + 4 * max(0, SSIM)",
        )
    }
)
