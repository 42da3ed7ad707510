"""A further model costs one class: `helpers.linear` goes through the whole chain, and no line is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.crops import Corners, CornersTwin, Crops, CropsConfig, corners
from helpers.linear import Linear, LinearConfig
from PIL import Image

from glia_engines.build import build
from glia_export import views as traced_views
from glia_export.export import export
from glia_rt import Scorer, contract
from glia_rt.backends.cuda.engine import find_engines
from glia_rt.bundle import Bundle
from glia_rt.pixels import views as numpy_views
from glia_rt.pixels.decode import read_image
from glia_rt.verify import require, selftest
from glia_train.checkpoint import Checkpoint, make_checkpoint
from glia_train.datasets.csv import read_labels
from glia_train.models.table import FAMILIES, untrained
from glia_train.options import TrainOptions
from glia_train.train import train


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Plain pictures, the brighter the better."""
    rows = ["path,score"]
    for i in range(20):
        Image.new("RGB", (40 + i, 30 + 2 * i), (10 * i, 8 * i, 5 * i)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{i}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "labels.csv"


def test_a_family_of_ten_lines(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "linear", Linear)
    options = TrainOptions(epochs=2, batch_size=7, lr=1e-2, score_range=(0.0, 19.0))
    trained = train(read_labels(labels), tmp_path / "run", LinearConfig(), options, "random")
    checkpoint = Checkpoint.load(trained.checkpoint)
    assert checkpoint.describe()["model"] == {"family": "linear", "config": {"size": 16}}
    model = checkpoint.build_model()

    bundle = export(trained.checkpoint, tmp_path / "linear.glia").path
    assert Bundle.open(bundle).manifest["model"]["family"] == "linear"
    assert Bundle.open(bundle).contract.shapes("views") == {"picture": (16, 16, 3)}

    pictures = sorted(tmp_path.glob("*.png"), key=lambda path: int(path.stem))
    for backend in ("onnxruntime", "openvino"):
        with Scorer.open(bundle, backend, precision="fp32") as scorer:
            require(selftest(scorer))
            scores = scorer.score_batch(pictures)  # type: ignore[arg-type]
            assert np.corrcoef(scores, np.arange(20))[0, 1] > 0.9
            views = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
            with torch.inference_mode():
                expected = model.score(torch.from_numpy(views)).numpy()
            np.testing.assert_allclose(scorer.score_views(picture=views), expected, atol=19e-5)

    build(bundle, "tensorrt-rtx")
    [(_, record)] = find_engines(Bundle.open(bundle), "tensorrt-rtx", "views", "fp16")
    assert record.profile == {"picture": ((1, 16, 16, 3), (32, 16, 16, 3), (64, 16, 16, 3))}


TAKEN = [pytest.param(name, True, marks=pytest.mark.slow) for name in ("view", "val_0", "_to_copy", "features")]


@pytest.mark.parametrize(("name", "calibrated"), [("linear", True), ("crops", False), *TAKEN])
def test_an_input_of_several_crops(
    name: str, calibrated: bool, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that gives (K, S, S, 3), and names that the exporter has for values of its own."""
    monkeypatch.setitem(FAMILIES, "crops", Crops)
    monkeypatch.setattr(contract, "RULES", {**contract.RULES, "corners": Corners})
    monkeypatch.setattr(numpy_views, "RULES", {**numpy_views.RULES, "corners": corners})
    monkeypatch.setattr(traced_views, "TWINS", {**traced_views.TWINS, "corners": CornersTwin})
    model, found = untrained(CropsConfig(name))
    if calibrated:
        found = found.with_range(-3.0, 3.0)
    make_checkpoint(model, found, {}).save(tmp_path / "crops.pt")
    bundle = export(tmp_path / "crops.pt", tmp_path / "crops.glia").path
    assert Bundle.open(bundle).contract.shapes("views") == {name: (3, 16, 16, 3)}
    files = sorted(pictures.iterdir())[:5]
    for kind in ("views", "image"):
        with Scorer.open(bundle, "onnxruntime", precision="fp32", input=kind) as scorer:
            require(selftest(scorer))
            scores = scorer.score_batch(files)  # type: ignore[arg-type]
        crops = torch.from_numpy(np.stack([corners(read_image(path), Corners(16), None) for path in files]))
        with torch.inference_mode():
            np.testing.assert_allclose(scores, model.score(crops).numpy(), atol=6e-5)
    if name == "crops":
        build(bundle, "tensorrt-rtx")
        [(_, record)] = find_engines(Bundle.open(bundle), "tensorrt-rtx", "views", "fp16")
        assert record.profile[name][0] == (1, 3, 16, 16, 3)
