"""KADID-10k's 25 distortions at five levels each, for synthetic training sets.

The source is Lin, Hosu, Saupe: "KADID-10k: A Large-scale Artificially Distorted IQA Database", QoMEX 2019. The
parameters are those of the published generator. The code is this project's own, so its pictures are similar to the
generator's, not identical. It departs from the generator on purpose in five points:

- Values are used as they are (v / 255), not stretched to each picture's own minimum and maximum.
- The denoiser is non-local means, not a trained network.
- Tone curves and sharpening act on R, G and B.
- A grey level of quantization is the mean of its class.
- Shifts go in any direction.

A level is not a label. How bad level 3 looks differs between distortions and between pictures.
"""

# scikit-image's functions carry no types.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import map_coordinates, shift
from scipy.signal import fftconvolve
from skimage import color
from skimage.exposure import rescale_intensity
from skimage.filters import gaussian, sobel, unsharp_mask
from skimage.restoration import denoise_nl_means
from skimage.transform import resize
from skimage.util import random_noise

from glia_rt.errors import UsageError

LEVELS = 5
#: Distortions whose severity does not rise with the level.
UNORDERED = ("mean_shift", "contrast")
MIN_SIDE = 32  # a colour block's side; a patch of non-eccentricity and its step need 24

FloatImage: TypeAlias = NDArray[np.float64]  # (H, W, 3) RGB in [0, 1]


@dataclass(frozen=True)
class Distortion:
    """One distortion of KADID-10k.

    Attributes:
        number: KADID-10k's number, 1..25, as in its file names (I01_NN_LL.png).
        name: Key in `DISTORTIONS`.
        levels: The parameter at levels 1 to 5, in the unit that `function` takes.
        function: (image, parameter, rng) -> image, both float64 RGB (H, W, 3). The input lies in [0, 1]. The output
            may leave that range.
    """

    number: int
    name: str
    levels: tuple[float, float, float, float, float]
    function: Callable[[FloatImage, float, Generator], FloatImage]


def distort(image: NDArray[np.uint8], name: str, level: int, rng: Generator) -> NDArray[np.uint8]:
    """Return a distorted copy of a picture.

    Severity rises with the level, with two exceptions. The levels of mean_shift shift by nothing, up, down, further up
    and further down. Levels 1 to 3 of contrast raise it, each less than the level before; levels 4 and 5 lower it, the
    last one more. With the published parameters, level 1 of gaussian_blur, motion_blur, color_saturation_2 and
    mean_shift leaves the picture as it is.

    Args:
        image: uint8 RGB (H, W, 3), both sides at least 32 pixels; it is not modified.
        name: A key of `DISTORTIONS`.
        level: 1 to 5.
        rng: Source of noise, positions and directions; the same state gives the same picture.

    Returns:
        uint8 RGB of the same shape.

    Raises:
        UsageError: The name is unknown, the level is outside 1..5, or the array is not such a picture.
    """
    if name not in DISTORTIONS:
        raise UsageError(f"no distortion is called {name!r}; there are {', '.join(DISTORTIONS)}")
    if level not in range(1, LEVELS + 1):
        raise UsageError(f"level must be 1, 2, 3, 4 or 5, not {level!r}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"image must be uint8 RGB of shape (H, W, 3), not {image.dtype} of shape {image.shape}")
    if min(image.shape[:2]) < MIN_SIDE:
        height, width = image.shape[:2]
        raise UsageError(f"image must be at least {MIN_SIDE}x{MIN_SIDE} pixels, not {width}x{height}: enlarge it first")
    distortion = DISTORTIONS[name]
    return _to_uint8(distortion.function(image / 255.0, distortion.levels[level - 1], rng))


def _to_uint8(image: FloatImage) -> NDArray[np.uint8]:
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


# Blurs


def _gaussian_blur(image: FloatImage, sigma: float, rng: Generator) -> FloatImage:
    return gaussian(image, sigma, channel_axis=-1)


def _lens_blur(image: FloatImage, radius: float, rng: Generator) -> FloatImage:
    return _convolve(image, _disk_kernel(int(radius)))


def _motion_blur(image: FloatImage, length: float, rng: Generator) -> FloatImage:
    return _convolve(image, _line_kernel(length, rng.uniform(0, math.pi)))


def _disk_kernel(radius: int) -> FloatImage:
    """Return the kernel of a disk, (2 radius + 1, 2 radius + 1), whose sum is 1.

    The weight of a pixel is proportional to the part of it that the disk covers.
    """
    side, fine = 2 * radius + 1, 16
    x = (np.arange(side * fine) + 0.5) / fine - side / 2
    inside = np.hypot(x[:, None], x) <= radius
    kernel = inside.reshape(side, fine, side, fine).mean(axis=(1, 3))
    return kernel / kernel.sum()


def _line_kernel(length: float, angle: float) -> FloatImage:
    """Return the kernel of a line through the centre, `length` pixels long, whose sum is 1.

    Before the division by their sum, the weights fall from 1 on the line to 0 one pixel away from it.
    """
    half = (length - 1) / 2
    reach = math.ceil(half)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    cos, sin = math.cos(angle), math.sin(angle)
    along = (x * cos + y * sin).clip(-half, half)
    kernel = (1 - np.hypot(x - along * cos, y - along * sin)).clip(min=0)
    return kernel / kernel.sum()


def _convolve(image: FloatImage, kernel: FloatImage) -> FloatImage:
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


# Colour


def _color_diffusion(image: FloatImage, amount: float, rng: Generator) -> FloatImage:
    lab = color.rgb2lab(image)
    lab[..., 1:] = amount * gaussian(lab[..., 1:], 1.5 * amount + 2, channel_axis=-1)
    return _lab_to_rgb(lab)


def _color_shift(image: FloatImage, distance: float, rng: Generator) -> FloatImage:
    edges = rescale_intensity(gaussian(sobel(color.rgb2gray(image)), 4), out_range=(0, 1))
    green = image[..., 1]
    moved = shift(green, _random_step(distance, rng), order=0, mode="nearest")
    out = image.copy()
    out[..., 1] = edges * moved + (1 - edges) * green
    return out


def _color_quantization(image: FloatImage, size: float, rng: Generator) -> FloatImage:
    picture = Image.fromarray(_to_uint8(image))
    palette = picture.quantize(int(size))
    # The published generator diffuses the error, and Pillow does so only if it is given a palette. The first call maps
    # each pixel to the nearest colour.
    dithered = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(dithered.convert("RGB")) / 255.0


def _color_saturation_1(image: FloatImage, factor: float, rng: Generator) -> FloatImage:
    return color.hsv2rgb(color.rgb2hsv(image) * (1, factor, 1))


def _color_saturation_2(image: FloatImage, factor: float, rng: Generator) -> FloatImage:
    return _lab_to_rgb(color.rgb2lab(image) * (1, factor, factor))


def _lab_to_rgb(lab: FloatImage) -> FloatImage:
    # f(Z) = (L + 16) / 116 - b / 200 must not be negative. scikit-image would clip such a Z to 0 too, but with a
    # warning. 1e-9 keeps the rounded value from being negative.
    lab[..., 2] = np.minimum(lab[..., 2], (lab[..., 0] + 16) / 116 * 200 - 1e-9)
    return color.lab2rgb(lab)


# Compression


def _jpeg2000(image: FloatImage, ratio: float, rng: Generator) -> FloatImage:
    return _recode(image, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)


def _jpeg(image: FloatImage, quality: float, rng: Generator) -> FloatImage:
    return _recode(image, "JPEG", quality=int(quality))


def _recode(image: FloatImage, codec: str, **options: Any) -> FloatImage:
    file = io.BytesIO()
    Image.fromarray(_to_uint8(image)).save(file, codec, **options)
    return np.asarray(Image.open(file)) / 255.0


# Noise


def _white_noise(image: FloatImage, variance: float, rng: Generator) -> FloatImage:
    return random_noise(image, "gaussian", rng=rng, var=variance)


def _white_noise_ycbcr(image: FloatImage, variance: float, rng: Generator) -> FloatImage:
    ycbcr = color.rgb2ycbcr(image) / 255  # Y in [16, 235] / 255, Cb and Cr in [16, 240] / 255
    return color.ycbcr2rgb(random_noise(ycbcr, "gaussian", rng=rng, var=variance) * 255)


def _impulse_noise(image: FloatImage, density: float, rng: Generator) -> FloatImage:
    return random_noise(image, "s&p", rng=rng, amount=density)


def _multiplicative_noise(image: FloatImage, variance: float, rng: Generator) -> FloatImage:
    return random_noise(image, "speckle", rng=rng, var=variance)


def _denoise(image: FloatImage, variance: float, rng: Generator) -> FloatImage:
    # Non-local means uses the known sigma and is quick. It leaves the least error at the lower variances among the
    # denoisers of scikit-image that need no further package. h and the patches are those of scikit-image's own example.
    sigma = math.sqrt(variance)
    noisy = _white_noise(image, variance, rng)
    return denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )


# Tone


def _brighten(image: FloatImage, amount: float, rng: Generator) -> FloatImage:
    return _tone_curve(image, (0.5, 0.5 + amount / 2))


def _darken(image: FloatImage, amount: float, rng: Generator) -> FloatImage:
    return _tone_curve(image, (0.5, 0.5 - amount / 2))


def _contrast(image: FloatImage, amount: float, rng: Generator) -> FloatImage:
    return _tone_curve(image, (0.3, 0.25 - amount / 4), (0.7, 0.75 + amount / 4))


def _mean_shift(image: FloatImage, amount: float, rng: Generator) -> FloatImage:
    return image + amount


def _tone_curve(image: FloatImage, *points: tuple[float, float]) -> FloatImage:
    """Map every value through a smooth curve from (0, 0) through `points` to (1, 1), without overshoot."""
    x, y = zip((0.0, 0.0), *points, (1.0, 1.0), strict=True)
    return PchipInterpolator(x, y)(image)


# Positions


def _jitter(image: FloatImage, sigma: float, rng: Generator) -> FloatImage:
    height, width, _ = image.shape
    grid = np.mgrid[:height, :width]
    for _ in range(5):
        places = grid + rng.normal(0, sigma, grid.shape)  # (2, H, W)
        warped = [map_coordinates(channel, places, order=1, mode="nearest") for channel in np.moveaxis(image, -1, 0)]
        image = np.stack(warped, axis=-1)
    return image


def _non_eccentricity(image: FloatImage, patches: float, rng: Generator) -> FloatImage:
    height, width, _ = image.shape
    side, distance = 16, 8
    out = image.copy()
    for _ in range(int(patches)):
        dy, dx = _random_step(distance, rng)
        y = rng.integers(max(0, -dy), height - side - max(0, dy), endpoint=True)
        x = rng.integers(max(0, -dx), width - side - max(0, dx), endpoint=True)
        out[y + dy : y + dy + side, x + dx : x + dx + side] = image[y : y + side, x : x + side]
    return out


def _pixelate(image: FloatImage, strength: float, rng: Generator) -> FloatImage:
    height, width, _ = image.shape
    scale = 0.95 - strength**0.6
    small = resize(image, (round(height * scale), round(width * scale)), order=0)
    return resize(small, (height, width), order=0)


def _color_block(image: FloatImage, blocks: float, rng: Generator) -> FloatImage:
    height, width, _ = image.shape
    side = 32
    out = image.copy()
    for _ in range(int(blocks)):
        y = rng.integers(0, height - side, endpoint=True)
        x = rng.integers(0, width - side, endpoint=True)
        out[y : y + side, x : x + side] = rng.random(3)
    return out


def _random_step(distance: float, rng: Generator) -> tuple[int, int]:
    """Return (dy, dx) of a step of `distance` pixels in a random direction, rounded to whole pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    return round(distance * math.sin(angle)), round(distance * math.cos(angle))


# Grey levels and sharpness


def _quantization(image: FloatImage, grey_levels: float, rng: Generator) -> FloatImage:
    pixels = _to_uint8(image)
    histogram = np.bincount(pixels.ravel(), minlength=256)
    # A class becomes its mean, which is the value nearest to its members. The three channels share the thresholds.
    starts = _multi_otsu(histogram, int(grey_levels))
    lookup = np.empty(256)
    for start, stop in zip([0, *starts], [*starts, 256], strict=True):
        members = histogram[start:stop]
        lookup[start:stop] = members @ np.arange(start, stop) / max(members.sum(), 1)
    return lookup[pixels] / 255


def _multi_otsu(histogram: NDArray[np.int_], classes: int) -> list[int]:
    """Return multi-Otsu thresholds, found by dynamic programming in O(classes * bins^2).

    Trying every choice would take exponential time. The between-class variance of Otsu (1979) is, up to a constant, the
    sum over classes of (sum of values)^2 / count. Each class adds one term, so the best split of bins [0, j) into k
    classes extends a best split into k - 1 classes.

    Args:
        histogram: Counts of the values 0..bins - 1.
        classes: At least 1. Some classes stay empty if there are fewer values than classes.

    Returns:
        The first value of every class except the first class, ascending.
    """
    bins = len(histogram)
    count = np.concatenate([[0], np.cumsum(histogram)])
    total = np.concatenate([[0], np.cumsum(histogram * np.arange(bins))])
    counts = count - count[:, None]  # [i, j]: the count of the class [i, j)
    term = (total - total[:, None]) ** 2.0 / np.maximum(counts, 1)
    term[np.tril_indices(bins + 1, -1)] = -np.inf
    best = term[0]
    choices = []
    for _ in range(classes - 1):
        candidates = best[:, None] + term
        choices.append(candidates.argmax(axis=0))
        best = candidates.max(axis=0)
    starts = [bins]
    for choice in reversed(choices):
        starts.append(int(choice[starts[-1]]))
    return starts[:0:-1]


def _sharpen(image: FloatImage, amount: float, rng: Generator) -> FloatImage:
    # scikit-image takes channel_axis=-1 for rows and leaves most of the output unset (its issue 7264).
    return unsharp_mask(image, radius=3, amount=amount, channel_axis=2)


DISTORTIONS: Mapping[str, Distortion] = MappingProxyType(
    {
        distortion.name: distortion
        for distortion in (
            Distortion(1, "gaussian_blur", (0.1, 0.5, 1, 2, 5), _gaussian_blur),  # sigma, pixels
            Distortion(2, "lens_blur", (1, 2, 4, 6, 8), _lens_blur),  # radius, pixels
            Distortion(3, "motion_blur", (1, 2, 4, 6, 10), _motion_blur),  # length, pixels
            Distortion(4, "color_diffusion", (1, 3, 6, 8, 12), _color_diffusion),  # factor and spread of a, b
            Distortion(5, "color_shift", (1, 3, 6, 8, 12), _color_shift),  # pixels
            Distortion(6, "color_quantization", (64, 48, 32, 16, 8), _color_quantization),  # colours
            Distortion(7, "color_saturation_1", (0.4, 0.2, 0.1, 0, -0.4), _color_saturation_1),  # factor of HSV's S
            Distortion(8, "color_saturation_2", (1, 2, 3, 6, 9), _color_saturation_2),  # factor of Lab's a, b
            Distortion(9, "jpeg2000", (16, 32, 45, 120, 170), _jpeg2000),  # compression ratio
            Distortion(10, "jpeg", (43, 36, 24, 7, 4), _jpeg),  # quality
            Distortion(11, "white_noise", (0.001, 0.002, 0.003, 0.005, 0.01), _white_noise),  # variance
            Distortion(12, "white_noise_ycbcr", (0.0001, 0.0005, 0.001, 0.002, 0.003), _white_noise_ycbcr),  # variance
            Distortion(13, "impulse_noise", (0.001, 0.005, 0.01, 0.02, 0.03), _impulse_noise),  # share of samples
            Distortion(14, "multiplicative_noise", (0.001, 0.005, 0.01, 0.02, 0.05), _multiplicative_noise),  # variance
            Distortion(15, "denoise", (0.01, 0.03, 0.05, 0.1, 0.15), _denoise),  # variance before denoising
            Distortion(16, "brighten", (0.1, 0.2, 0.4, 0.7, 1.1), _brighten),
            Distortion(17, "darken", (0.05, 0.1, 0.2, 0.4, 0.8), _darken),
            Distortion(18, "mean_shift", (0, 0.08, -0.08, 0.15, -0.15), _mean_shift),
            Distortion(19, "jitter", (0.05, 0.1, 0.2, 0.5, 1), _jitter),  # sigma, pixels
            Distortion(20, "non_eccentricity", (20, 40, 60, 80, 100), _non_eccentricity),  # patches
            Distortion(21, "pixelate", (0.01, 0.05, 0.1, 0.2, 0.5), _pixelate),
            Distortion(22, "quantization", (20, 16, 13, 10, 7), _quantization),  # grey levels
            Distortion(23, "color_block", (2, 4, 6, 8, 10), _color_block),  # blocks
            Distortion(24, "sharpen", (1, 2, 3, 6, 12), _sharpen),
            Distortion(25, "contrast", (0.3, 0.15, 0, -0.4, -0.6), _contrast),
        )
    }
)
