"""benchmarks/starter.py: its figures on scores that are known, what it refuses, and what it ships."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.linear import Linear, LinearConfig
from PIL import Image

from glia_export import export as exporting
from glia_rt.bundle import Bundle
from glia_rt.starter.paths import CARD
from glia_train.checkpoint import make_checkpoint
from glia_train.datasets.base import LabelledPicture
from glia_train.evaluate import Selection
from glia_train.metrics import compare
from glia_train.models.table import FAMILIES, untrained

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SUBSETS = ("ss01", "ss02", "ss03")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which writes its results to a folder of the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("starter")
    for name in ("MODELS", "PREDICTIONS", "FIGURES"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.fixture
def chosen() -> Selection:
    """120 pictures of three subsets; the labels of ss03 are 10 higher, and four pictures leak."""
    rng = np.random.default_rng(0)
    pictures = tuple(
        LabelledPicture(f"{i:03}.png", None, rng.random() + 10 * (i % 3 == 2), subset=SUBSETS[i % 3])
        for i in range(120)
    )
    return Selection("biq2021", "test", 3407, "official", pictures, "", frozenset(p.name for p in pictures[:4]))


def test_figures_leave_out_leaking_pictures(script: Any, chosen: Selection) -> None:
    scores = np.array([p.score for p in chosen.pictures]) + np.random.default_rng(1).normal(0, 0.3, 120)
    found = script.agreement(chosen, scores)
    kept = slice(4, None)
    labels, subsets = (np.array([getattr(p, name) for p in chosen.pictures]) for name in ("score", "subset"))
    assert found["overall"]["srcc"] == pytest.approx(compare(scores[kept], labels[kept]).srcc, abs=1e-4)
    assert found["with leaking pictures"] == pytest.approx(compare(scores, labels).srcc, abs=1e-4)
    within = [compare(*(one[kept][subsets[kept] == subset] for one in (scores, labels))).srcc for subset in SUBSETS]
    assert [found[subset]["srcc"] for subset in SUBSETS] == pytest.approx(within, abs=1e-4)
    assert found["within"]["srcc"] == pytest.approx(np.mean(within), abs=1e-4)
    for figure in ("overall", "within", *SUBSETS):
        low, high = found[figure]["interval"]
        assert low < found[figure]["srcc"] < high


def test_a_model_is_neither_ahead_of_itself_nor_behind(script: Any, chosen: Selection) -> None:
    scores = np.random.default_rng(1).random(120)
    found = script.against(chosen, scores, scores)
    assert all(one == {"difference": 0, "interval": [0, 0]} for one in found.values())


def test_a_better_model_is_ahead(script: Any, chosen: Selection) -> None:
    labels, rng = np.array([p.score for p in chosen.pictures]), np.random.default_rng(1)
    good, bad = labels + rng.normal(0, 0.2, 120), labels + rng.normal(0, 1, 120)
    assert script.against(chosen, good, bad)["within"]["interval"][0] > 0
    assert script.against(chosen, bad, good)["within"]["interval"][1] < 0


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two linear models."""
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
    found = {}
    for seed, name in enumerate(("starter", "ridge")):
        model, contract = untrained(LinearConfig(), seed=seed)
        make_checkpoint(model, contract.with_range(0, 100), "random").save(tmp_path / f"{name}.pt")
        found[name] = str(tmp_path / f"{name}.pt")
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """BIQ2021 in small: 60 pictures of three subsets, half of them in the test part."""
    folder, rng = tmp_path / "biq2021", np.random.default_rng(0)
    (folder / "Images").mkdir(parents=True)
    rows: dict[str, list[str]] = {"Train": [], "Test": []}
    for i in range(60):
        name = f"{SUBSETS[i % 3]} ({9000 + i}).jpg"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "Images" / name)
        rows["Test" if i % 2 else "Train"].append(f"{name},{rng.random():.3f}")
    for part, lines in rows.items():
        (folder / f"{part} (Images and MOS).csv").write_text("\n".join(["Image Name,MOS", *lines]))
    return folder


def test_the_test_part_is_measured_once_and_without_labels(script: Any, models: dict[str, str], root: Path) -> None:
    script.name_models(models)
    named = json.loads(script.MODELS.read_text())
    assert named["ridge"]["sha256"] == hashlib.sha256(Path(models["ridge"]).read_bytes()).hexdigest()
    script.measure(models, str(root))
    figures = json.loads(script.FIGURES.read_text())
    assert figures["test part"]["pictures"] == 30
    assert set(figures["models"]) == {"starter", "ridge"}
    assert set(figures["against ridge"]) == {"starter"}
    rows = script.PREDICTIONS.read_text().splitlines()
    assert rows[0] == "path,starter,ridge"
    assert len(rows) == 31
    with pytest.raises(SystemExit, match="the test part is measured once"):
        script.measure(models, str(root))


def test_written_predictions_give_the_measured_differences(script: Any, models: dict[str, str], root: Path) -> None:
    script.name_models(models)
    script.measure(models, str(root))
    script.compare_predictions("ridge", str(root))
    found = json.loads((script.RESULTS / "against_ridge.json").read_text())
    assert found == json.loads(script.FIGURES.read_text())["against ridge"]
    with pytest.raises(SystemExit, match="has no tree, but starter, ridge"):
        script.compare_predictions("tree", str(root))


def test_only_the_named_checkpoints_are_measured(script: Any, models: dict[str, str], root: Path) -> None:
    script.name_models(models)
    with pytest.raises(SystemExit, match="names starter, ridge: give each of them"):
        script.measure({"ridge": models["ridge"]}, str(root))
    Path(models["starter"]).write_bytes(Path(models["starter"]).read_bytes() + b"x")
    with pytest.raises(SystemExit, match=r"starter\.pt is not the checkpoint that .* names starter"):
        script.measure(models, str(root))


def test_what_is_shipped_is_the_bundle_without_fp16_graphs(
    script: Any, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    for name, path in (("FOLDER", folder), ("BUNDLE", folder / "a.glia"), ("CHECKPOINT", folder / "checkpoint.pt")):
        monkeypatch.setattr(script, name, path)
    monkeypatch.setattr(exporting, "CHECKPOINT", folder / "checkpoint.pt")
    script.ship(Path(models["starter"]))
    bundle = Bundle.open(folder / "a.glia")
    assert {path.name for path in bundle.path.iterdir()} == {
        *("manifest.json", "scorer.onnx", "image_scorer.onnx", "selftest")
    }
    for name in bundle.manifest["files"]:
        bundle.checked_file(name)
    assert bundle.manifest["card"] == json.loads(CARD.read_text())
    assert (folder / "checkpoint.pt").read_bytes() == Path(models["starter"]).read_bytes()
    digest = hashlib.sha256((folder / "checkpoint.pt").read_bytes()).hexdigest()
    assert bundle.manifest["checkpoint"]["sha256"] == digest
