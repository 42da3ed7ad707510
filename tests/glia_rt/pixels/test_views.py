from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from helpers.contracts import CONTRACT, FRAGMENTS, RESIZE
from PIL import Image

from glia_rt.pixels.views import enlarged_side, fragments, make_inputs, resize

Pixels = npt.NDArray[np.uint8]

SIZE, GRID, FRAGMENT = 224, 7, 32

# Height, width: smallest, a side of 1, around the view's size, portrait, landscape, panorama, uneven ratios.
SIZES = [
    *[(1, 1), (1, 7), (7, 1), (2, 3), (13, 13), (32, 32), (223, 224), (224, 223), (223, 223), (224, 224), (225, 300)],
    *[(100, 1000), (640, 360), (360, 640), (301, 97), (150, 1201), (480, 720), (1021, 509)],
]
SMALL = [(height, width) for height, width in SIZES if min(height, width) < SIZE]
LARGE = [(height, width) for height, width in SIZES if min(height, width) >= SIZE]


def noise(height: int, width: int) -> Pixels:
    """Hard for a resize: every value occurs, and neighbours are far apart."""
    return np.random.default_rng(height * 100_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def numbered(height: int, width: int) -> Pixels:
    """Pixels that say where they are: red, green and blue are the digits of y * width + x to base 256."""
    number = np.arange(height * width).reshape(height, width)
    return np.stack([number >> 16, number >> 8 & 255, number & 255], axis=2).astype(np.uint8)


def positions(view: Pixels, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns that a view of `numbered` shows."""
    red, green, blue = np.moveaxis(view.astype(np.int64), 2, 0)
    number = (red << 16) + (green << 8) + blue
    return number // width, number % width


def bicubic(t: float) -> float:
    """Keys' cubic convolution with a = -1/2."""
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def antialiased_bicubic(image: Pixels, axis: int, size: int = SIZE) -> Pixels:
    """One pass of a resize with a filter as wide as the reduction, rounded to grey levels."""
    source = np.moveaxis(image, axis, 0).astype(np.float64)
    scale = len(source) / size
    reach = 2 * max(scale, 1.0)
    made = np.empty((size, *source.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * scale
        pixels = range(max(0, int(centre - reach + 0.5)), min(len(source), int(centre + reach + 0.5)))
        weights = np.array([bicubic((p + 0.5 - centre) / max(scale, 1.0)) for p in pixels])
        made[i] = np.tensordot(weights / weights.sum(), source[pixels.start : pixels.stop], 1)
    return np.moveaxis(np.clip(np.floor(made + 0.5), 0, 255).astype(np.uint8), 0, axis)


def test_shapes() -> None:
    for view in make_inputs(noise(300, 400), CONTRACT).values():
        assert view.shape == (SIZE, SIZE, 3)
        assert view.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_global_view_is_two_passes_of_pillow_horizontal_first(height: int, width: int) -> None:
    image = noise(height, width)
    across = Image.fromarray(image).resize((SIZE, height), Image.Resampling.BICUBIC)
    twice = across.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(image, RESIZE), twice)


@pytest.mark.parametrize(("height", "width"), [(97, 301), (640, 360), (1021, 509), (7, 1)])
def test_the_global_view_by_the_filters_formula(height: int, width: int) -> None:
    image = noise(height, width)
    view = resize(image, RESIZE).astype(np.int16)
    off = np.abs(antialiased_bicubic(antialiased_bicubic(image, axis=1), axis=0) - view)
    # Pillow rounds the weights to 22 bits: now and then a sum close to a half falls on its other side.
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3
    if min(height, width) > 1:
        other_order = antialiased_bicubic(antialiased_bicubic(image, axis=0), axis=1)
        assert (np.abs(other_order - view) > 0).mean() > 0.01, "this picture could not show a wrong order"


@pytest.mark.parametrize(("height", "width"), LARGE)
def test_fragments_by_the_papers_equations(height: int, width: int) -> None:
    image = noise(height, width)
    cell_height, cell_width = height // GRID, width // GRID  # g_h, g_w
    mosaic = np.empty((SIZE, SIZE, 3), np.uint8)
    for i in range(GRID):
        for j in range(GRID):
            top, left = i * cell_height, j * cell_width  # Eq. 1 and 2
            for y in range(FRAGMENT):
                for x in range(FRAGMENT):
                    mosaic[i * FRAGMENT + y, j * FRAGMENT + x] = image[top + y, left + x]
    np.testing.assert_array_equal(fragments(image, FRAGMENTS), mosaic)


def test_fragments_of_a_picture_of_the_views_size_are_the_picture() -> None:
    image = noise(SIZE, SIZE)
    np.testing.assert_array_equal(fragments(image, FRAGMENTS), image)


def enlarge(image: Pixels) -> Pixels:
    """What the small-image rule stands for, carried out."""
    height, width, _ = image.shape
    shorter = min(height, width)
    tall, wide = -(-SIZE * height // shorter), -(-SIZE * width // shorter)
    across = Image.fromarray(image).resize((wide, height), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((wide, tall), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("height", "width"), SMALL)
def test_fragments_of_a_small_picture_are_those_of_the_enlarged_one(height: int, width: int) -> None:
    image = noise(height, width)
    large = enlarge(image)
    assert min(large.shape[:2]) == SIZE
    np.testing.assert_array_equal(fragments(image, FRAGMENTS), fragments(large, FRAGMENTS))


def test_every_shorter_side() -> None:
    for shorter in range(1, SIZE):
        image = noise(shorter, shorter + 5)
        np.testing.assert_array_equal(fragments(image, FRAGMENTS), fragments(enlarge(image), FRAGMENTS))


def test_the_global_view_of_a_small_picture_is_made_from_the_picture_as_it_is() -> None:
    image = noise(50, 80)
    assert (resize(image, RESIZE) != resize(enlarge(image), RESIZE)).any()


def test_enlarged_sides_are_rounded_up() -> None:
    assert enlarged_side(223, 223, SIZE) == SIZE
    assert enlarged_side(224, 223, SIZE) == 226  # 225.004...
    assert enlarged_side(65535, 1, SIZE) == 224 * 65535
    assert enlarged_side(300, 224, SIZE) == 300


@pytest.mark.parametrize(("height", "width"), [(1, 65535), (65535, 1)])
def test_a_long_thin_picture_is_never_enlarged(height: int, width: int) -> None:
    image = noise(height, width)
    make_inputs(image, CONTRACT)  # what is made once is not counted
    tracemalloc.start()
    mosaic = make_inputs(image, CONTRACT)["fragments"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Enlarged, the picture would have 224 x 14,679,840 pixels: 10 GB, and minutes.
    assert peak < 32 * 2**20
    line = image.reshape(-1, 3)
    starts = np.arange(GRID) * (SIZE * len(line) // GRID)
    shown = (starts[:, None] + np.arange(FRAGMENT)).ravel()  # pixels of the enlarged side that the mosaic shows
    expected = [np.interp((shown + 0.5) / SIZE - 0.5, np.arange(len(line)), line[:, c]) for c in range(3)]
    along = mosaic if width > height else mosaic.transpose(1, 0, 2)
    for row in along:
        np.testing.assert_allclose(row, np.stack(expected, axis=1), rtol=0, atol=0.5 + 1e-4)


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (225, 300), (640, 360)])
def test_random_fragments_are_whole_and_lie_inside_their_cells(height: int, width: int) -> None:
    image, rng = numbered(height, width), np.random.default_rng(0)
    cell_height, cell_width = height // GRID, width // GRID
    for _ in range(20):
        rows, columns = positions(fragments(image, FRAGMENTS, rng), width)
        for i in range(GRID):
            for j in range(GRID):
                there = np.s_[i * FRAGMENT : (i + 1) * FRAGMENT, j * FRAGMENT : (j + 1) * FRAGMENT]
                top, left = rows[there].min(), columns[there].min()
                assert i * cell_height <= top <= (i + 1) * cell_height - FRAGMENT
                assert j * cell_width <= left <= (j + 1) * cell_width - FRAGMENT
                np.testing.assert_array_equal(rows[there], np.arange(top, top + FRAGMENT)[:, None].repeat(FRAGMENT, 1))
                np.testing.assert_array_equal(
                    columns[there], np.arange(left, left + FRAGMENT)[None].repeat(FRAGMENT, 0)
                )


def test_random_offsets_take_every_value_each_fragment_its_own() -> None:
    height = width = 37 * GRID  # offsets 0 to 5
    rng, seen = np.random.default_rng(1), set()
    for _ in range(10):
        rows, columns = positions(fragments(numbered(height, width), FRAGMENTS, rng), width)
        down, right = rows[::FRAGMENT, ::FRAGMENT] % 37, columns[::FRAGMENT, ::FRAGMENT] % 37
        assert len(np.unique(down)) > 1
        assert len(np.unique(right)) > 1
        seen |= set(zip(down.ravel().tolist(), right.ravel().tolist(), strict=True))
    assert seen == {(y, x) for y in range(6) for x in range(6)}


def test_random_offsets_are_reproducible() -> None:
    image = noise(400, 500)
    first, again, other = (fragments(image, FRAGMENTS, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != fragments(image, FRAGMENTS)).any()


def test_random_fragments_of_a_small_picture_are_those_of_the_enlarged_one() -> None:
    image = noise(90, 500)
    small, large = (fragments(picture, FRAGMENTS, np.random.default_rng(5)) for picture in (image, enlarge(image)))
    np.testing.assert_array_equal(small, large)


def test_the_picture_is_left_as_it_was() -> None:
    for size in [(50, 80), (300, 400)]:
        image = noise(*size)
        image.flags.writeable = False
        make_inputs(image, CONTRACT, np.random.default_rng(0))
