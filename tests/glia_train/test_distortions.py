# scikit-image's functions carry no types.
# mypy: disable-error-code="no-untyped-call, no-any-return"

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image
from skimage import color, data
from skimage.filters import gaussian, threshold_multiotsu

from glia_rt.errors import UsageError
from glia_train.distortions import DISTORTIONS, _multi_otsu, _random_step, distort

Pixels = NDArray[np.uint8]

NAMES = list(DISTORTIONS)
RISING = [name for name in NAMES if name not in ("mean_shift", "contrast")]
UNCHANGED = {("gaussian_blur", 1), ("motion_blur", 1), ("color_saturation_2", 1), ("mean_shift", 1)}


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return data.astronaut()[20:180, 130:354]  # a face: (160, 224, 3)


@pytest.fixture
def rng() -> Generator:
    return default_rng(0)


def flat(value: int | tuple[int, int, int], height: int = 200, width: int = 200) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def impulse(side: int) -> NDArray[np.float64]:
    image = np.zeros((side, side, 3))
    image[side // 2, side // 2] = 1
    return image


def apply(name: str, image: NDArray[np.float64], level: int, rng: Generator) -> NDArray[np.float64]:
    """The distortion before clipping and rounding."""
    return DISTORTIONS[name].function(image, DISTORTIONS[name].levels[level - 1], rng)


def ramp() -> NDArray[np.float64]:
    """Every value n / 20 in [0, 1], in a row: (32, 21, 3)."""
    return np.tile(np.linspace(0, 1, 21)[None, :, None], (32, 1, 3))


def mse(a: Pixels, b: Pixels) -> float:
    return float(((a.astype(float) - b) ** 2).mean())


# All 25


def test_numbers_and_names_follow_kadid() -> None:
    assert [d.number for d in DISTORTIONS.values()] == list(range(1, 26))
    assert all(name == d.name and len(d.levels) == 5 for name, d in DISTORTIONS.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(40, 40), (32, 57), (101, 33), (160, 224)])
def test_every_level_keeps_shape_and_type_and_repeats(name: str, shape: tuple[int, int], photo: Pixels) -> None:
    image = np.ascontiguousarray(photo[: shape[0], : shape[1]])
    before = image.copy()
    for level in range(1, 6):
        out = distort(image, name, level, default_rng(3))
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, distort(image, name, level, default_rng(3)))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", NAMES)
def test_every_level_changes_a_photograph_unless_documented(name: str, photo: Pixels) -> None:
    same = {(name, level) for level in range(1, 6) if (distort(photo, name, level, default_rng(3)) == photo).all()}
    assert same == {pair for pair in UNCHANGED if pair[0] == name}


@pytest.mark.parametrize("name", RISING)
def test_severity_rises_with_the_level(name: str, photo: Pixels) -> None:
    errors = [mse(distort(photo, name, level, default_rng(3)), photo) for level in range(1, 6)]
    assert errors == sorted(errors)
    assert errors[4] > errors[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_flat_picture_is_no_special_case(name: str, value: int, rng: Generator) -> None:
    for level in (1, 5):
        assert distort(flat(value, 40, 50), name, level, rng).shape == (40, 50, 3)


@pytest.mark.parametrize("name", ["motion_blur", "color_shift", "white_noise", "jitter", "color_block"])
def test_the_generator_decides(name: str, photo: Pixels) -> None:
    assert (distort(photo, name, 5, default_rng(1)) != distort(photo, name, 5, default_rng(2))).any()


# Blurs


@pytest.mark.parametrize("level", [3, 4, 5])
def test_gaussian_blur_has_a_gaussian_impulse_response(level: int, rng: Generator) -> None:
    sigma = DISTORTIONS["gaussian_blur"].levels[level - 1]
    x = np.arange(-40, 41)
    weights = np.exp(-(x**2) / (2 * sigma**2))
    weights /= weights.sum()
    response = apply("gaussian_blur", impulse(81), level, rng)
    np.testing.assert_allclose(response[..., 1], np.outer(weights, weights), atol=1e-4 * weights.max() ** 2 + 1e-6)


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_lens_blur_spreads_a_point_evenly_over_a_disk(level: int, rng: Generator) -> None:
    radius = DISTORTIONS["lens_blur"].levels[level - 1]
    response = apply("lens_blur", impulse(41), level, rng)[..., 0]
    y, x = np.mgrid[-20:21, -20:21]
    distance = np.hypot(y, x)
    even = 1 / (math.pi * radius**2)
    assert response.sum() == pytest.approx(1)
    np.testing.assert_allclose(response[distance <= radius - 0.75], even, rtol=0.02)
    np.testing.assert_allclose(response[distance >= radius + 0.75], 0, atol=1e-12)


@pytest.mark.parametrize("level", [3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_motion_blur_spreads_a_point_along_a_line(level: int, seed: int) -> None:
    length = DISTORTIONS["motion_blur"].levels[level - 1]
    response = apply("motion_blur", impulse(41), level, default_rng(seed))[..., 0]
    y, x = np.mgrid[-20:21, -20:21]
    assert response.sum() == pytest.approx(1)
    assert (response * y).sum() == pytest.approx(0, abs=1e-9)
    assert (response * x).sum() == pytest.approx(0, abs=1e-9)
    assert np.hypot(y, x)[response > 1e-9].max() < (length - 1) / 2 + 1
    spread = np.cov(np.stack([y.ravel(), x.ravel()]), aweights=response.ravel().clip(0), ddof=0)
    across, along = np.linalg.eigvalsh(spread)
    assert across < 0.3
    assert math.sqrt(12 * along) == pytest.approx(length, rel=0.15)


@pytest.mark.parametrize("name", ["gaussian_blur", "lens_blur", "motion_blur", "sharpen"])
def test_blurs_have_no_border(name: str, rng: Generator) -> None:
    np.testing.assert_array_equal(distort(flat(90), name, 5, rng), flat(90))


# Colour


def test_color_diffusion_scales_and_spreads_colour_and_keeps_lightness(rng: Generator) -> None:
    grey = flat(120)
    np.testing.assert_array_equal(distort(grey, "color_diffusion", 5, rng), grey)
    dull = flat((125, 120, 118))
    before, after = (color.rgb2lab(picture)[0, 0] for picture in (dull, distort(dull, "color_diffusion", 2, rng)))
    np.testing.assert_allclose(after, before * (1, 3, 3), atol=0.7)

    step = flat((125, 120, 118))
    step[:, 100:] = 120
    chroma = color.rgb2lab(distort(step, "color_diffusion", 2, rng))[100, :, 1]
    assert chroma[0] == pytest.approx(3 * before[1], abs=0.7)
    assert chroma[100] == pytest.approx(chroma[0] / 2, abs=0.7)


def test_color_shift_moves_green_alone_and_only_near_edges(rng: Generator) -> None:
    image = flat(40)
    image[:, 100:] = 200
    image[::9, :70:9] += 2  # texture far from the edge and faint beside it
    out = distort(image, "color_shift", 5, rng)
    np.testing.assert_array_equal(out[..., [0, 2]], image[..., [0, 2]])
    changed = np.flatnonzero((out[..., 1] != image[..., 1]).any(axis=0))
    assert changed.size > 0
    assert changed.min() >= 100 - 12
    assert changed.max() < 100 + 12


@pytest.mark.parametrize("distance", [1, 3, 6, 8, 12])
def test_steps_have_their_length_and_go_everywhere(distance: int, rng: Generator) -> None:
    steps = np.array([_random_step(distance, rng) for _ in range(300)])
    np.testing.assert_allclose(np.hypot(*steps.T), distance, atol=0.75)
    assert {(-1, -1), (-1, 1), (1, -1), (1, 1)} <= {tuple(signs) for signs in np.sign(steps).tolist()}


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_color_quantization_leaves_a_palette(level: int, photo: Pixels, rng: Generator) -> None:
    size = DISTORTIONS["color_quantization"].levels[level - 1]
    colours = np.unique(distort(photo, "color_quantization", level, rng).reshape(-1, 3), axis=0)
    assert size / 2 < len(colours) <= size


def test_color_quantization_keeps_the_mean_by_dithering(rng: Generator) -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (64, 256, 3))
    out = distort(ramp, "color_quantization", 5, rng)
    off = np.abs(out.mean(axis=(0, 2)) - np.arange(256))[24:-24]  # beyond the palette's ends nothing can help
    assert off.mean() < 2  # the nearest of 8 evenly spaced greys would be off by 8


def test_saturation_nought_is_grey_and_a_negative_one_turns_the_hue(photo: Pixels, rng: Generator) -> None:
    grey = distort(photo, "color_saturation_1", 4, rng)
    np.testing.assert_array_equal(grey, np.repeat(photo.max(axis=-1, keepdims=True), 3, axis=-1))
    # V = 200, S = 0.5 becomes S = -0.4 * 0.5: the other two channels rise to V * 1.2.
    np.testing.assert_array_equal(distort(flat((200, 100, 100)), "color_saturation_1", 5, rng), flat((200, 240, 240)))


def test_color_saturation_2_scales_a_and_b(rng: Generator) -> None:
    dull = flat((125, 120, 118))
    before, after = (color.rgb2lab(picture)[0, 0] for picture in (dull, distort(dull, "color_saturation_2", 3, rng)))
    np.testing.assert_allclose(after, before * (1, 3, 3), atol=0.7)


def test_colours_out_of_gamut_raise_no_warning(rng: Generator) -> None:
    vivid = np.stack(np.meshgrid(*[np.linspace(0, 255, 16).round()] * 3), axis=-1).reshape(64, 64, 3).astype(np.uint8)
    for name, level in itertools.product(("color_diffusion", "color_saturation_2"), range(1, 6)):
        distort(vivid, name, level, rng)  # warnings are errors here


# Compression


def reopened(image: Pixels, codec: str, **options: Any) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, codec, **options)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(("level", "quality"), [(1, 43), (5, 4)])
def test_jpeg_is_pillows(level: int, quality: int, photo: Pixels, rng: Generator) -> None:
    np.testing.assert_array_equal(distort(photo, "jpeg", level, rng), reopened(photo, "JPEG", quality=quality))


@pytest.mark.parametrize(("level", "ratio"), [(1, 16), (5, 170)])
def test_jpeg2000_is_pillows(level: int, ratio: int, photo: Pixels, rng: Generator) -> None:
    expected = reopened(photo, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)
    np.testing.assert_array_equal(distort(photo, "jpeg2000", level, rng), expected)


# Noise: on mid grey nothing is clipped


@pytest.mark.parametrize("level", [1, 5])
def test_white_noise_has_its_variance(level: int, rng: Generator) -> None:
    out = distort(flat(128), "white_noise", level, rng) / 255
    assert out.mean() == pytest.approx(128 / 255, abs=1e-3)
    assert out.var() == pytest.approx(DISTORTIONS["white_noise"].levels[level - 1], rel=0.03)
    assert abs(np.corrcoef(out[..., 0].ravel(), out[..., 1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("level", [2, 5])
def test_white_noise_ycbcr_has_its_variance_in_ycbcr(level: int, rng: Generator) -> None:
    noisy = distort(flat(128), "white_noise_ycbcr", level, rng)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    out = color.rgb2ycbcr(noisy) / 255
    np.testing.assert_allclose(out.var(axis=(0, 1)), DISTORTIONS["white_noise_ycbcr"].levels[level - 1], rtol=0.05)


@pytest.mark.parametrize("level", [1, 5])
def test_impulse_noise_turns_its_share_of_samples_black_or_white(level: int, rng: Generator) -> None:
    out = distort(flat(128), "impulse_noise", level, rng)
    values, counts = np.unique(out, return_counts=True)
    assert values.tolist() == [0, 128, 255]
    assert 1 - counts[1] / out.size == pytest.approx(DISTORTIONS["impulse_noise"].levels[level - 1], rel=0.2)
    assert counts[0] == pytest.approx(counts[2], rel=0.3)


@pytest.mark.parametrize("value", [0, 60, 120])
def test_multiplicative_noise_grows_with_the_value(value: int, rng: Generator) -> None:
    out = distort(flat(value), "multiplicative_noise", 5, rng).astype(float)
    assert out.std() == pytest.approx(value * math.sqrt(0.05), rel=0.03)


def test_denoise_leaves_less_than_a_quarter_of_the_noise(photo: Pixels) -> None:
    image = photo / 255
    noisy = (image + default_rng(0).normal(0, math.sqrt(0.01), image.shape)).clip(0, 1)
    left = apply("denoise", image, 1, default_rng(0))
    assert 0 < ((left - image) ** 2).mean() < ((noisy - image) ** 2).mean() / 4


# Tone


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["brighten", "darken", "contrast"])
def test_tone_curves_keep_the_ends_pass_their_points_and_never_fall(name: str, level: int, rng: Generator) -> None:
    amount = DISTORTIONS[name].levels[level - 1]
    curve = apply(name, ramp(), level, rng)[0, :, 0]
    np.testing.assert_allclose(curve[[0, 20]], [0, 1])
    if name == "contrast":
        np.testing.assert_allclose(curve[[6, 10, 14]], [0.25 - amount / 4, 0.5, 0.75 + amount / 4])
    else:
        assert curve[10] == pytest.approx(0.5 + (amount if name == "brighten" else -amount) / 2)
    assert (np.diff(curve.clip(0, 1)) >= 0).all()


@pytest.mark.parametrize(("level", "grey"), [(1, 0), (2, 20), (3, -20), (4, 38), (5, -38)])
def test_mean_shift_adds_exactly(level: int, grey: int, photo: Pixels, rng: Generator) -> None:
    expected = (photo.astype(int) + grey).clip(0, 255)
    np.testing.assert_array_equal(distort(photo, "mean_shift", level, rng), expected)


# Places


@pytest.mark.parametrize("level", [2, 3, 4])
def test_jitter_moves_pixels_by_its_sigma_five_times(level: int, rng: Generator) -> None:
    sigma = DISTORTIONS["jitter"].levels[level - 1]
    y, x = np.mgrid[:120, :120].astype(float)
    places = np.stack([y, x, x], axis=-1)  # a picture whose values are its coordinates
    moved = (apply("jitter", places, level, rng) - places)[10:-10, 10:-10]
    np.testing.assert_array_equal(moved[..., 1], moved[..., 2])  # channels move together
    assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.05
    # Interpolation averages the shifts of earlier warps, so that the five add up to less than sqrt(5) sigma.
    assert 1.2 * sigma < moved.std() < math.sqrt(5) * sigma


@pytest.mark.parametrize("level", [1, 5])
def test_non_eccentricity_copies_patches_from_eight_pixels_away(level: int, rng: Generator) -> None:
    y, x = np.mgrid[:180, :250]
    places = np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)
    out = distort(places, "non_eccentricity", level, rng)
    step = (out.astype(int) - places)[..., :2]
    moved = step.any(axis=-1)
    np.testing.assert_allclose(np.hypot(*step[moved].T), 8, atol=0.75)
    patches = int(DISTORTIONS["non_eccentricity"].levels[level - 1])
    assert patches * 256 / 3 < moved.sum() <= patches * 256


@pytest.mark.parametrize(("level", "scale"), [(1, 0.886904), (5, 0.290246)])
def test_pixelate_keeps_the_pixels_of_the_small_picture(level: int, scale: float, rng: Generator) -> None:
    y, x = np.mgrid[:90, :140]
    places = np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)
    out = distort(places, "pixelate", level, rng)
    kept = {tuple(pixel) for pixel in out.reshape(-1, 3).tolist()}
    assert len(kept) == round(90 * scale) * round(140 * scale)
    assert np.abs(out.astype(int) - places).max() <= 1 / scale


@pytest.mark.parametrize("level", [1, 3, 5])
def test_color_block_draws_its_number_of_squares(level: int, rng: Generator) -> None:
    blocks = DISTORTIONS["color_block"].levels[level - 1]
    out = distort(flat(0, 300, 700), "color_block", level, rng)
    colours, counts = np.unique(out.reshape(-1, 3), axis=0, return_counts=True)
    assert colours[0].tolist() == [0, 0, 0]
    assert len(colours) == 1 + blocks
    assert counts[1:].max() == 32 * 32
    rows, columns = np.nonzero((out == colours[1:][counts[1:].argmax()]).all(axis=-1))
    assert np.ptp(rows) == np.ptp(columns) == 31


# Grey levels and sharpness


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_quantization_leaves_its_number_of_grey_levels(level: int, photo: Pixels, rng: Generator) -> None:
    out = distort(photo, "quantization", level, rng)
    assert len(np.unique(out)) == DISTORTIONS["quantization"].levels[level - 1]


def test_quantization_keeps_a_picture_of_fewer_values(rng: Generator) -> None:
    image = flat(10)
    image[50:, :, 1] = 250
    for level in (1, 5):
        np.testing.assert_array_equal(distort(image, "quantization", level, rng), image)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("picture", ["camera", "moon", "coins"])
def test_multi_otsu_agrees_with_scikit_image(picture: str, classes: int) -> None:
    histogram = np.bincount(getattr(data, picture)().ravel(), minlength=256)
    last_of_class = threshold_multiotsu(hist=(histogram, np.arange(256)), classes=classes)
    assert _multi_otsu(histogram, classes) == [last + 1 for last in last_of_class]


@pytest.mark.parametrize("seed", range(5))
def test_multi_otsu_is_the_best_of_all_choices(seed: int) -> None:
    histogram = default_rng(seed).integers(0, 3, 12)  # with empty bins
    values = np.arange(12)

    def within(starts: tuple[int, ...]) -> float:
        groups = zip((0, *starts), (*starts, 12), strict=True)
        samples = [np.repeat(values[a:b], histogram[a:b]) for a, b in groups]
        return sum(float(((s - s.mean()) ** 2).sum()) for s in samples if s.size)

    best = min(within(starts) for starts in itertools.combinations(range(1, 12), 4))
    assert within(tuple(_multi_otsu(histogram, 5))) == pytest.approx(best)


@pytest.mark.parametrize("level", [1, 5])
def test_sharpen_adds_what_the_blur_takes_away(level: int, photo: Pixels, rng: Generator) -> None:
    image = photo / 255
    amount = DISTORTIONS["sharpen"].levels[level - 1]
    expected = image + amount * (image - gaussian(image, 3, mode="reflect", channel_axis=2))
    np.testing.assert_allclose(apply("sharpen", image, level, rng), expected.clip(0, 1), atol=1e-12)


# Errors


def test_an_unknown_name_is_answered_with_the_known_ones(photo: Pixels, rng: Generator) -> None:
    with pytest.raises(UsageError, match=r"'gaussian'; there are gaussian_blur, .*, contrast"):
        distort(photo, "gaussian", 1, rng)


@pytest.mark.parametrize("level", [0, 6, -1])
def test_levels_are_one_to_five(level: int, photo: Pixels, rng: Generator) -> None:
    with pytest.raises(UsageError, match=f"level must be 1, 2, 3, 4 or 5, not {level}"):
        distort(photo, "jpeg", level, rng)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40, 3)),
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((3, 40, 40), np.uint8),
    ],
    ids=["float", "grey", "alpha", "channels first"],
)
def test_pictures_are_uint8_rgb(image: NDArray[Any], rng: Generator) -> None:
    with pytest.raises(UsageError, match="uint8 RGB"):
        distort(image, "jpeg", 1, rng)


def test_pictures_have_room_for_a_block(rng: Generator) -> None:
    with pytest.raises(UsageError, match="at least 32x32 pixels, not 50x31"):
        distort(flat(0, 31, 50), "jpeg", 1, rng)
