"""`glia-rt evaluate` and `glia-rt compare` on real bundles and checkpoints: what they print and write."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.labels import write_labels
from helpers.linear import Linear
from scipy.stats import kendalltau, spearmanr

from glia_rt.bundle import Bundle
from glia_rt.cli.main import main
from glia_train.checkpoint import make_checkpoint
from glia_train.models.base import Model
from glia_train.models.table import FAMILIES

Capture = pytest.CaptureFixture[str]
ONNX = ["--backend", "onnxruntime"]


@pytest.fixture(autouse=True)
def _linear_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
    monkeypatch.setattr("glia_train.evaluate.RESAMPLES", 100)


@pytest.fixture
def labels(pictures: Path, tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels.csv", pictures, {"subset": ["one", "one", "one", "two"] * 8})


def table(out: str) -> dict[str, list[str]]:
    """The lines of a table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


def test_the_figures_are_scipy_s_of_the_predictions(
    plain_bundle: Path, labels: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["evaluate", str(plain_bundle), "--data", str(labels), *ONNX]
    assert main([*arguments, "--predictions", str(tmp_path / "p.csv")]) == 0
    printed = capsys.readouterr()
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores, truth = (np.array([float(row[name]) for row in rows]) for name in ("score", "label"))
    assert len(rows) == 16
    assert {row["split"] for row in rows} == {"test"}
    shown = table(printed.out)
    assert f"16 pictures, the test part of {labels}" in printed.out
    assert shown["SRCC"][0] == f"{spearmanr(scores, truth).statistic:.4f}"
    assert shown["KRCC"][0] == f"{kendalltau(scores, truth).statistic:.4f}"
    low, _, high = shown["SRCC"][1:]
    assert float(low) < float(shown["SRCC"][0]) < float(high)
    assert shown["subset"][:2] == ["two", "8"]
    two = np.array([row["subset"] == "two" for row in rows])
    assert shown["subset"][2] == f"{spearmanr(scores[two], truth[two]).statistic:.4f}"
    assert "backend onnxruntime, fp32, cpu" in printed.err


def test_a_checkpoint_has_the_srcc_of_its_bundle(plain_bundle: Path, labels: Path, capsys: Capture) -> None:
    found = {}
    for model, engine in ((plain_bundle, ONNX), (plain_bundle.parent / "plain.pt", ["--precision", "fp32"])):
        assert main(["evaluate", str(model), "--data", str(labels), "--json", *engine]) == 0
        printed = capsys.readouterr()
        found[json.loads(printed.out)["scored_with"]["backend"]] = json.loads(printed.out)
    assert "backend pytorch, fp32, " in printed.err
    assert found["pytorch"]["overall"]["srcc"] == found["onnxruntime"]["overall"]["srcc"]
    assert found["pytorch"]["overall"]["plcc"] == pytest.approx(found["onnxruntime"]["overall"]["plcc"], abs=1e-4)


def test_json(plain_bundle: Path, labels: Path, capsys: Capture) -> None:
    arguments = ["evaluate", str(plain_bundle), "--data", str(labels), "--split", "validation", "--json", *ONNX]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["split"], record["split_by"], record["seed"]) == ("validation", "official", 3407)
    assert record["overall"]["pictures"] == 8
    low, high = record["overall"]["intervals"]["srcc"]
    assert -1 <= low <= record["overall"]["srcc"] <= high <= 1
    assert record["bootstrap"] == {"level": 0.95, "resamples": 100}
    assert record["scored_with"]["precision"] == "fp32"


def test_bad_pictures_are_listed_and_the_status_is_3(
    plain_bundle: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    paths = sorted(pictures.iterdir())
    for i in range(12):
        paths[2 + i] = tmp_path / f"bad {i}.jpg"
        paths[2 + i].write_text("hello")
    labels = write_labels(tmp_path / "labels.csv", pictures, {"path": paths})
    assert main(["evaluate", str(plain_bundle), "--data", str(labels), "--split", "all", *ONNX]) == 3
    printed = capsys.readouterr()
    assert "20 pictures, all parts of" in printed.out
    assert "12 of 32 pictures could not be read and are left out:" in printed.err
    assert f"{tmp_path / 'bad 0.jpg'}: " in printed.err
    assert "and 2 more; --json lists them" in printed.err
    assert main(["evaluate", str(plain_bundle), "--data", str(labels), "--json", *ONNX]) == 3
    assert len(json.loads(capsys.readouterr().out)["unreadable"]) == 6


def test_missing_pictures_are_refused_before_anything_is_scored(
    plain_bundle: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    paths = [*sorted(pictures.iterdir())[:-1], tmp_path / "gone.jpg"]
    labels = write_labels(tmp_path / "labels.csv", pictures, {"path": paths})
    assert main(["evaluate", str(plain_bundle), "--data", str(labels), *ONNX]) == 2
    assert "1 of 32 pictures are not there, first" in capsys.readouterr().err


def test_columns_of_other_names(plain_bundle: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    columns = {"mos": list(range(32)), "file": sorted(pictures.iterdir()), "scene": [f"s{i // 4}" for i in range(32)]}
    labels = write_labels(tmp_path / "labels.csv", pictures, columns)
    named = ["--score-column", "mos", "--path-column", "file", "--group-column", "scene"]
    arguments = ["evaluate", str(plain_bundle), "--data", str(labels), *named, *ONNX, "--split", "all"]
    assert main([*arguments, "--predictions", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["label"]) for row in rows] == list(range(32))
    assert [row["group"] for row in rows] == [f"s{i // 4}" for i in range(32)]


def test_a_published_dataset(plain_bundle: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "images").mkdir()
    lines = ["dist_img,ref_img,dmos,var"]
    for i, path in enumerate(sorted(pictures.iterdir())):
        name = f"I{i // 4 + 1:02}_{i % 2 + 1:02}_{i // 2 % 2 + 1:02}.png"
        (tmp_path / "images" / name).write_bytes(path.read_bytes())
        lines.append(f"{name},I{i // 4 + 1:02}.png,{1 + i / 8},0.1")
    (tmp_path / "dmos.csv").write_text("\n".join(lines) + "\n")
    arguments = ["evaluate", str(plain_bundle), "--dataset", "kadid10k", "--root", str(tmp_path), "--json", *ONNX]
    assert main([*arguments, "--split", "all"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["dataset"] == "kadid10k"
    assert len(record["distortions"]) == 2
    assert sum(one["pictures"] for one in record["distortions"].values()) == 32


def test_files_are_written_and_not_overwritten_unasked(
    plain_bundle: Path, labels: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["evaluate", str(plain_bundle), "--data", str(labels), *ONNX]
    outputs = ["--predictions", str(tmp_path / "p.csv"), "--report", str(tmp_path / "r.html")]
    assert main([*arguments, *outputs]) == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    before = (tmp_path / "p.csv").read_bytes()
    assert main([*arguments, *outputs]) == 2
    assert "exists: name another file, or give --overwrite" in capsys.readouterr().err
    assert main([*arguments, *outputs, "--overwrite"]) == 0
    assert (tmp_path / "p.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no labelled pictures: give --dataset NAME and --root DIR, or --data LABELS"),
        (["--dataset", "biq2021", "--data", "l.csv"], "--dataset and --data are two sources of labels"),
        (["--data", "l.csv", "--root", "r"], "--root is the folder of a published dataset: drop it"),
        (["--dataset", "biq2021", "--score-column", "mos"], "--group-column are for --data: drop them"),
        (["--dataset", "koniq"], "there is no dataset 'koniq': give one of biq2021, kadid10k, or labels of your own"),
        (["--dataset", "biq2021"], "biq2021 needs --root"),
        (["--data", "l.csv", "--predictions", "p.txt"], "p.txt: the name must end in .csv"),
        (["--data", "l.csv", "--report", "gone/r.html"], "gone/r.html: there is no folder gone; make it first"),
    ],
)
def test_what_does_not_go_together(plain_bundle: Path, arguments: list[str], reason: str, capsys: Capture) -> None:
    assert main(["evaluate", str(plain_bundle), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_model_that_is_not_there(labels: Path, capsys: Capture) -> None:
    assert main(["evaluate", "gone.glia", "--data", str(labels)]) == 5
    assert "gone.glia: no such bundle or checkpoint" in capsys.readouterr().err


def test_a_checkpoint_without_its_backbone(labels: Path, tmp_path: Path, capsys: Capture) -> None:
    import torch

    from glia_train.checkpoint import make_checkpoint
    from glia_train.models.glianet import ModelConfig
    from glia_train.models.table import untrained

    config = ModelConfig(backbone="vit_tiny_patch16_224")
    torch.save(untrained(config)[0].backbones()["backbone"].state_dict(), tmp_path / "backbone.pth")
    model, contract = untrained(config, str(tmp_path / "backbone.pth"))
    make_checkpoint(model, contract, "backbone.pth", adapter_only=True).save(tmp_path / "adapters.pt")
    arguments = ["evaluate", str(tmp_path / "adapters.pt"), "--data", str(labels), "--split", "validation"]
    assert main(arguments) == 2
    assert "adapters only: give --backbone-weights" in capsys.readouterr().err
    assert main([*arguments, "--backbone-weights", str(tmp_path / "backbone.pth")]) == 0
    printed = capsys.readouterr()
    assert "8 pictures, the validation part" in printed.out
    assert "never trained: its scores mean nothing" in printed.err


@pytest.fixture
def other_model(plain_bundle: Path, tmp_path: Path) -> Callable[[float], Path]:
    """The plain model, its weights times 1 +- noise, as a checkpoint."""
    import torch

    from glia_train.checkpoint import Checkpoint, make_checkpoint

    def make(noise: float) -> Path:
        checkpoint = Checkpoint.load(plain_bundle.parent / "plain.pt")
        model = checkpoint.build_model()
        with torch.no_grad():
            weight = next(model.parameters())
            generator = torch.Generator().manual_seed(0)
            weight *= 1 + noise * torch.randn(weight.shape, generator=generator)
        make_checkpoint(model, checkpoint.contract, "random").save(tmp_path / "other.pt")
        return tmp_path / "other.pt"

    return make


def test_two_models(
    plain_bundle: Path, other_model: Callable[[float], Path], pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    # The plain model's own scores, so that it is right and the other one is not.
    assert main(["score", str(plain_bundle), str(pictures), "-o", str(tmp_path / "s.csv"), *ONNX]) == 0
    with (tmp_path / "s.csv").open(newline="") as file:
        scores = [row["score"] for row in csv.DictReader(file)]
    labels = write_labels(tmp_path / "labels.csv", pictures, {"score": scores})
    arguments = [str(plain_bundle), str(other_model(2.0)), "--data", str(labels), "--split", "all"]
    capsys.readouterr()
    assert main(["compare", *arguments, "--json", "--precision", "fp32"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["pictures"] == 32
    assert record["a"]["srcc"] == pytest.approx(1)
    assert record["b"]["srcc"] < 0.99
    assert record["difference"] == pytest.approx(record["a"]["srcc"] - record["b"]["srcc"])
    assert record["interval"][0] > 0
    assert record["excludes_zero"] is True
    assert main(["compare", *arguments, "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert table(out)["B"][-1] == f"{record['b']['srcc']:.4f}"
    assert f"{record['difference']:+.4f}" in out
    assert f"{record['interval'][0]:+.4f} to {record['interval'][1]:+.4f}" in out
    assert "the interval excludes 0" in out


def test_a_model_and_itself(plain_bundle: Path, labels: Path, capsys: Capture) -> None:
    assert main(["compare", str(plain_bundle), str(plain_bundle), "--data", str(labels), *ONNX]) == 0
    out = capsys.readouterr().out
    assert table(out)["A"][-1] != ""
    assert "+0.0000 to +0.0000" in out
    assert "the interval holds 0" in out


def test_compare_lists_bad_pictures_once(plain_bundle: Path, pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    paths = sorted(pictures.iterdir())
    paths[2] = tmp_path / "bad.jpg"
    paths[2].write_text("hello")
    labels = write_labels(tmp_path / "labels.csv", pictures, {"path": paths})
    assert main(["compare", str(plain_bundle), str(plain_bundle), "--data", str(labels), *ONNX]) == 3
    printed = capsys.readouterr()
    assert printed.err.count("bad.jpg") == 1
    assert "15 pictures" in printed.out


def test_a_checkpoint_beside_an_engine(
    plain_bundle: Path, plain_model: Model, labels: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The options of engines are for the bundle. The checkpoint, which has none of them, is scored by PyTorch."""
    checkpoint = tmp_path / "plain.pt"
    make_checkpoint(plain_model, Bundle.open(plain_bundle).contract, "random").save(checkpoint)
    for pair in ([checkpoint, plain_bundle], [plain_bundle, checkpoint]):
        arguments = [*map(str, pair), "--data", str(labels), "--backend", "onnxruntime", "--precision", "fp32"]
        assert main(["compare", *arguments, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        backends = {Path(record[side]["model"]).name: record[side]["scored_with"]["backend"] for side in "ab"}
        assert backends == {"plain.pt": "pytorch", "plain.glia": "onnxruntime"}
    assert main(["compare", str(checkpoint), str(checkpoint), "--data", str(labels), "--backend", "onnxruntime"]) == 2
    assert "drop --backend" in capsys.readouterr().err
