"""The sampler as a torch module, and as ONNX, against the one in glia_rt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
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
OPSETS = (20, 23)
SIZES = [
    (1, 1),
    (2, 3),
    (31, 33),
    (223, 224),
    (224, 224),
    (225, 449),
    (677, 333),
    (900, 301),
    (100, 1000),
    (5000, 223),
    (640, 4801),
    (1, 65535),
    (65535, 1),
    (3000, 4000),
    (4000, 3000),
]


@pytest.fixture(scope="module")
def samplers() -> dict[str, Run]:
    """The module itself, and its traces in ONNX Runtime."""
    module = Sampler(CONTRACT).eval()

    def eager(images: Pixels) -> Sampled:
        with torch.inference_mode():
            global_view, fragments = module(torch.from_numpy(images))
        return global_view.numpy(), fragments.numpy()

    def traced(opset: int) -> Run:
        graph = graphs.trace_sampler(CONTRACT, opset)
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda images: tuple(session.run(None, {IMAGE: images}))

    return {"eager": eager} | {f"opset {opset}": traced(opset) for opset in OPSETS}


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> Pixels:
    astronaut = Image.fromarray(skimage.data.astronaut())
    return np.asarray(astronaut.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_sampler_is_pillows_within_one_grey_level(height: int, width: int, samplers: dict[str, Run]) -> None:
    # Two pictures in one batch: each must get its own views.
    images = np.stack([noise(height, width), photograph(height, width)])
    expected = [make_views(image, CONTRACT) for image in images]
    levels, share = SAMPLER_LIMITS
    assert (levels, share) == (1, 1e-3)
    for name, sampler in samplers.items():
        global_views, fragments = sampler(images)
        for i, views in enumerate(expected):
            off = np.abs(global_views[i] - views.global_view)
            assert off.max() <= levels, name
            assert (off > 0).mean() <= share, name
            np.testing.assert_array_equal(fragments[i], views.fragments, err_msg=name)


def test_sampler_follows_the_contract() -> None:
    contract = Contract(CONTRACT.mean, CONTRACT.std, view_size=96, grid=3, fragment=32)
    image = photograph(150, 90)
    expected = make_views(image, contract)
    global_view, fragments = Sampler(contract)(torch.from_numpy(image.copy())[None])
    assert np.abs(global_view[0].numpy() - expected.global_view).max() <= 1
    np.testing.assert_array_equal(fragments[0].numpy(), expected.fragments)


@pytest.mark.parametrize("side", [1, 223, 224, 3000, 65535])
def test_weights_of_each_output_pixel_sum_to_one(side: int) -> None:
    weights = bicubic_weights(side, 224, torch.device("cpu"))
    assert weights.shape == (224, side)
    torch.testing.assert_close(weights.double().sum(dim=1), torch.ones(224, dtype=torch.float64), atol=1e-3, rtol=0)
