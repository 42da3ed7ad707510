"""The sampler as a torch module, and as ONNX, against the one in glia_rt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import openvino as ov
import pytest
import skimage.data
import torch
from PIL import Image

from glia_export import graphs
from glia_export.export import SAMPLER_LIMITS
from glia_export.sampler import Sampler, bicubic_weights
from glia_rt.contract import IMAGE, Contract
from glia_rt.sampler import Pixels, make_views

#: Whole grey levels of both views, float32 (N, 224, 224, 3) each.
Sampled = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
Run = Callable[[Pixels], Sampled]

CONTRACT = Contract(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SIZES = [
    (1, 1),
    (32, 33),
    (223, 224),
    (225, 449),
    (677, 333),
    (900, 301),
    (100, 1000),
    (5000, 223),
    (640, 4801),
    (1, 65535),
    (65535, 1),
    (3000, 4000),
]


@pytest.fixture(scope="module")
def samplers() -> dict[str, Run]:
    """The module itself, and its traces in both engines; OpenVINO computes integers in 32 bits or fewer."""
    module = Sampler(CONTRACT).eval()

    def eager(images: Pixels) -> Sampled:
        with torch.inference_mode():
            global_view, fragments = module(torch.from_numpy(images))
        return global_view.numpy(), fragments.numpy()

    def onnxruntime(opset: int) -> Run:
        graph = graphs.trace_sampler(CONTRACT, opset).SerializeToString()
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return lambda images: tuple(session.run(None, {IMAGE: images}))

    def openvino(opset: int) -> Run:
        model = ov.Core().read_model(graphs.trace_sampler(CONTRACT, opset).SerializeToString())
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: tuple(compiled(images).values())

    return {
        "eager": eager,
        "opset 20 in ONNX Runtime": onnxruntime(20),
        "opset 23 in ONNX Runtime": onnxruntime(23),
        "opset 20 in OpenVINO": openvino(20),
    }


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> Pixels:
    pixels: Pixels = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    astronaut = Image.fromarray(pixels)
    return np.asarray(astronaut.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_views_are_the_runtimes_within_one_grey_level(height: int, width: int, samplers: dict[str, Run]) -> None:
    # Two pictures in one batch: each must get its own views.
    images = np.stack([noise(height, width), photograph(height, width)])
    expected = [make_views(image, CONTRACT) for image in images]
    levels, share = SAMPLER_LIMITS
    assert (levels, share) == (1, 1e-3)
    if min(height, width) < 32:
        share = 1 / 224  # one value of the first pass, spread over a row or column by the second
    for name, sampler in samplers.items():
        global_views, fragments = sampler(images)
        for i, views in enumerate(expected):
            off = np.abs(global_views[i] - views.global_view)
            assert off.max() <= levels, name
            assert (off > 0).mean() <= share, name
            np.testing.assert_array_equal(fragments[i], views.fragments, err_msg=name)


def test_views_of_tiny_pictures(samplers: dict[str, Run]) -> None:
    """A half that the first pass rounds the other way can become two levels in the second; on average, hardly any."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(24):
        height, width = (int(side) for side in rng.integers(1, 32, 2))
        image = noise(height, width)
        views = make_views(image, CONTRACT)
        for name, sampler in samplers.items():
            global_view, fragments = sampler(image[None])
            off = np.abs(global_view[0] - views.global_view)
            assert off.max() <= 2, (name, height, width)
            shares.append((off > 0).mean())
            np.testing.assert_array_equal(fragments[0], views.fragments, err_msg=f"{name}, {height} x {width}")
    assert np.mean(shares) <= 1e-3


def test_sampler_follows_the_contract() -> None:
    contract = Contract(CONTRACT.mean, CONTRACT.std, view_size=96, grid=3, fragment=32)
    image = photograph(150, 90)
    expected = make_views(image, contract)
    global_view, fragments = Sampler(contract)(torch.from_numpy(image.copy())[None])
    assert np.abs(global_view[0].numpy() - expected.global_view).max() <= 1
    np.testing.assert_array_equal(fragments[0].numpy(), expected.fragments)


@pytest.mark.parametrize("side", [1, 2, 100, 223, 224, 225, 336, 3000, 65535])
def test_weights_are_pillows_within_their_last_bit(side: int) -> None:
    pixel, out = np.arange(side), np.arange(224)[:, None]
    scale = side / 224
    t = np.abs((pixel + 0.5 - (out + 0.5) * scale) / max(scale, 1.0))
    weights = np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    found = bicubic_weights(side, 224, torch.device("cpu")).numpy()
    assert found.shape == (224, side)
    # 2**-22, and half of it, since this one is not rounded
    assert np.abs(found - weights).max() <= 1.5 * 2.0**-22
