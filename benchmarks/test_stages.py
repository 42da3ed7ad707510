"""Benchmarks of the stages of scoring, one by one. `python -m pytest benchmarks` prints a table.

They use the smallest model, so that the time of the stages around the engine shows.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glia_export.export import export
from glia_export.parity import SELFTEST
from glia_rt import Scorer
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import fragments, resize
from glia_train.checkpoint import make_checkpoint
from glia_train.models.glianet import GLIANet, ModelConfig
from glia_train.models.table import untrained

RESIZE, FRAGMENTS = (one.rule for one in GLIANet.inputs(ModelConfig()))
SIZES = {"768x512": (768, 512), "4000x3000": (4000, 3000)}


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def scorer(request: Any, tmp_path_factory: Any) -> Iterator[Scorer]:
    folder = tmp_path_factory.mktemp("bundle")
    model, contract = untrained(ModelConfig(backbone="vit_tiny_patch16_224"))
    make_checkpoint(model, contract, "random").save(folder / "checkpoint.pt")
    with Scorer.open(export(folder / "checkpoint.pt").path, request.param) as opened:
        yield opened


@pytest.fixture(params=SIZES)
def photograph(request: Any) -> Image.Image:
    return Image.open(Path(SELFTEST) / "astronaut.png").resize(SIZES[request.param])


def test_decode_jpeg(benchmark: Any, photograph: Image.Image) -> None:
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=90)
    pixels = benchmark(read_image, file.getvalue())
    assert pixels.shape == (photograph.height, photograph.width, 3)


def test_global_view(benchmark: Any, photograph: Image.Image) -> None:
    assert benchmark(resize, np.asarray(photograph), RESIZE).shape == (224, 224, 3)


def test_fragments(benchmark: Any, photograph: Image.Image) -> None:
    assert benchmark(fragments, np.asarray(photograph), FRAGMENTS).shape == (224, 224, 3)


@pytest.mark.parametrize("batch", [1, 8])
def test_engine(benchmark: Any, scorer: Scorer, batch: int) -> None:
    views = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    scores = benchmark(scorer.backend.run, {one.name: views for one in scorer.contract.inputs})
    assert scores.shape == (batch,)
    assert np.isfinite(scores).all()
