"""The sampler as a torch module, and as ONNX, against the one in glia_rt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import skimage.data
import torch
from helpers.contracts import CONTRACT, LARGE_SIZES, SIZES, make_contract
from onnx import version_converter
from PIL import Image

from glia_export import trace
from glia_export.parity import RULE_LIMITS
from glia_export.views import TWINS, Views, bicubic_weights
from glia_rt.contract import IMAGE, Fragments, ModelInput, Resize
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.views import RULES, make_inputs

#: Whole grey levels of both views, float32 (N, 224, 224, 3) each.
Sampled = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
Run = Callable[[Pixels], Sampled]


@pytest.fixture(scope="module")
def samplers() -> dict[str, Run]:
    """The module itself, and its trace in ONNX Runtime, of the opsets that it is joined to."""
    module = Views(CONTRACT).eval()

    def eager(images: Pixels) -> Sampled:
        with torch.inference_mode():
            global_view, fragments = module(torch.from_numpy(images))
        return global_view.numpy(), fragments.numpy()

    traced = trace.trace_rules(CONTRACT)

    def onnxruntime(opset: int) -> Run:
        graph = version_converter.convert_version(traced, opset).SerializeToString()
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return lambda images: tuple(session.run(None, {IMAGE: images}))

    return {
        "eager": eager,
        "opset 20": onnxruntime(20),
        "opset 23": onnxruntime(23),
    }


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> Pixels:
    pixels: Pixels = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    astronaut = Image.fromarray(pixels)
    return np.asarray(astronaut.resize((width, height), Image.Resampling.BICUBIC))


def test_every_rule_has_a_twin() -> None:
    assert set(TWINS) == set(RULES)


def test_the_limits_are_one_grey_level_on_a_thousandth_of_the_values() -> None:
    assert RULE_LIMITS == (1, 1e-3)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_views_are_the_runtimes(height: int, width: int, samplers: dict[str, Run]) -> None:
    # Two pictures in one batch: each must get its own views.
    images = np.stack([noise(height, width), photograph(height, width)])
    expected = [make_inputs(image, CONTRACT) for image in images]
    for name, sampler in samplers.items():
        for found, pair in zip(sampler(images), zip(*(views.values() for views in expected), strict=True), strict=True):
            np.testing.assert_array_equal(found, np.stack(pair), err_msg=name)


@pytest.mark.parametrize(("height", "width"), LARGE_SIZES)
def test_views_of_large_pictures_are_the_runtimes_within_a_grey_level(
    height: int, width: int, samplers: dict[str, Run]
) -> None:
    # A side over 3,584 has more weights than float32 sums exactly.
    image = noise(height, width)
    views = make_inputs(image, CONTRACT)
    levels, share = RULE_LIMITS
    global_view, fragments = samplers["opset 20"](image[None])
    off = np.abs(global_view[0] - views["global_view"])
    assert off.max() <= levels
    assert (off > 0).mean() <= share
    np.testing.assert_array_equal(fragments[0], views["fragments"])


def test_views_of_small_pictures_are_the_runtimes(samplers: dict[str, Run]) -> None:
    # Enlarged, their few pixels make many halves; one that rounds the other way shows in a whole row or column.
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = (int(side) for side in rng.integers(1, 64, 2))
        image = noise(height, width)
        for name, sampler in samplers.items():
            for found, expected in zip(sampler(image[None]), make_inputs(image, CONTRACT).values(), strict=True):
                np.testing.assert_array_equal(found[0], expected, err_msg=f"{name}, {height} x {width}")


def test_sampler_follows_the_contract() -> None:
    inputs = (ModelInput("global_view", Resize(96)), ModelInput("fragments", Fragments(96, 3, 32)))
    contract = make_contract(inputs=inputs)
    image = photograph(150, 90)
    expected = make_inputs(image, contract)
    global_view, fragments = Views(contract)(torch.from_numpy(image.copy())[None])
    np.testing.assert_array_equal(global_view[0].numpy(), expected["global_view"])
    np.testing.assert_array_equal(fragments[0].numpy(), expected["fragments"])


@pytest.mark.parametrize("side", [1, 2, 100, 223, 224, 225, 336, 3000, 65535])
def test_weights_are_pillows(side: int) -> None:
    pixel, out = np.arange(side), np.arange(224)[:, None]
    scale = side / 224
    t = np.abs((pixel + 0.5 - (out + 0.5) * scale) / max(scale, 1.0))
    weights = np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    weights *= 2.0**22 / weights.sum(axis=1, keepdims=True)
    found = bicubic_weights(side, 224, torch.device("cpu")).numpy()
    assert found.shape == (224, side)
    assert np.abs(found - weights).max() <= 0.5 + 1e-5
