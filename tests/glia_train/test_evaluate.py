"""Evaluation of real checkpoints and bundles: which pictures, which figures, and what cannot be read."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.labels import write_labels
from helpers.linear import Linear
from pyarrow import parquet

from glia_rt.contract import Contract
from glia_rt.errors import BundleError, UsageError
from glia_train.checkpoint import Checkpoint, make_checkpoint
from glia_train.datasets.base import Dataset
from glia_train.datasets.csv import Columns, read_labels
from glia_train.datasets.parquet import read_parquet
from glia_train.evaluate import (
    COLUMNS,
    SEED,
    Choice,
    Evaluation,
    Prediction,
    difference,
    evaluate,
    judge,
    score,
    select,
)
from glia_train.metrics import compare
from glia_train.models.base import Model
from glia_train.models.table import FAMILIES
from glia_train.report import SHOWN, write_report
from glia_train.scorer import Engine, TorchScorer, open_scorer

ONNX = Engine("onnxruntime", batch_size=4)


@pytest.fixture(autouse=True)
def _linear_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glia_train.evaluate.RESAMPLES", 40)


@pytest.fixture
def checkpoint(plain_bundle: Path) -> Path:
    """The checkpoint that the bundle was exported from."""
    return plain_bundle.parent / "plain.pt"


@pytest.fixture
def dataset(pictures: Path, tmp_path: Path) -> Dataset:
    return read_labels(write_labels(tmp_path / "labels.csv", pictures))


def scores_of(evaluation: Evaluation) -> list[float]:
    return [one.score for one in evaluation.scored.predictions]


def labels_of(evaluation: Evaluation) -> list[float]:
    return [one.picture.score for one in evaluation.scored.predictions]


def test_a_checkpoint_and_its_bundle_agree(plain_bundle: Path, checkpoint: Path, dataset: Dataset) -> None:
    by_torch = evaluate(checkpoint, dataset, engine=Engine(precision="fp32"))
    by_onnx = evaluate(plain_bundle, dataset, engine=ONNX)
    assert len(scores_of(by_torch)) == 16
    assert scores_of(by_torch) == pytest.approx(scores_of(by_onnx), abs=4e-5)
    assert by_torch.overall.metrics.srcc == by_onnx.overall.metrics.srcc
    assert by_torch.overall.intervals["srcc"] == by_onnx.overall.intervals["srcc"]
    assert (by_torch.scored.engine["backend"], by_onnx.scored.engine["backend"]) == ("pytorch", "onnxruntime")


def test_the_figures_are_those_of_the_predictions(plain_bundle: Path, dataset: Dataset) -> None:
    found = evaluate(plain_bundle, dataset, engine=ONNX)
    assert found.overall.metrics == compare(scores_of(found), labels_of(found))
    assert set(found.overall.intervals) == {"srcc", "krcc", "plcc", "rmse"}
    record = found.to_dict()
    assert record["overall"]["srcc"] == found.overall.metrics.srcc
    assert record["overall"]["mapping"] == found.overall.metrics.mapping
    assert record["split_by"] == "official"
    assert record["unreadable"] == []
    assert "subsets" not in record


@pytest.mark.parametrize(("part", "count"), [("train", 8), ("validation", 8), ("test", 16), ("all", 32)])
def test_a_part_reads_its_own_pictures_only(
    plain_bundle: Path, pictures: Path, tmp_path: Path, part: str, count: int
) -> None:
    paths: list[Path] = []
    for i, path in enumerate(sorted(pictures.iterdir())):
        own = ("train", "validation", "test", "test")[i % 4] == part or part == "all"
        paths.append(path if own else tmp_path / f"never read {i}.jpg")
    dataset = read_labels(write_labels(tmp_path / "labels.csv", pictures, {"path": paths}))
    found = evaluate(plain_bundle, dataset, part, engine=ONNX)  # type: ignore[arg-type]
    assert (found.overall.pictures, found.scored.unreadable) == (count, ())


def test_a_drawn_split_is_that_of_the_seed(pictures: Path, tmp_path: Path) -> None:
    groups = [f"group {i // 2}" for i in range(32)]
    labels = write_labels(tmp_path / "labels.csv", pictures, {"split": [""] * 32, "reference": groups})
    text = labels.read_text().splitlines()
    labels.write_text("\n".join(",".join(line.split(",")[:2] + line.split(",")[3:]) for line in text) + "\n")
    dataset = read_labels(labels)
    parts = [select(dataset, part, SEED) for part in ("train", "validation", "test")]
    names = [{picture.name for picture in one.pictures} for one in parts]
    assert sum(map(len, names)) == len(set.union(*names)) == 32
    assert {one.by for one in parts} == {"reference"}
    assert select(dataset, "test", SEED).pictures == parts[2].pictures
    assert select(dataset, "test", SEED + 1).pictures != parts[2].pictures


def test_subsets_and_distortions(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    columns = {"subset": ["one", "two"] * 16, "distortion": ["blur"] * 32}
    found = evaluate(
        plain_bundle, read_labels(write_labels(tmp_path / "labels.csv", pictures, columns)), "all", engine=ONNX
    )
    assert set(found.subsets) == {"one", "two"}
    assert found.distortions == {}  # one kind only
    for name, agreement in found.subsets.items():
        own = [one for one in found.scored.predictions if one.picture.subset == name]
        assert agreement.pictures == 16
        assert agreement.metrics == compare([one.score for one in own], [one.picture.score for one in own])
        assert set(agreement.intervals) == {"srcc"}


def test_test_pictures_with_a_twin_in_training(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    groups = [f"group {i}" for i in range(32)]
    groups[2] = groups[0]  # a test picture and a training picture
    labels = write_labels(tmp_path / "labels.csv", pictures, {"group": groups})
    dataset = read_labels(labels, Columns(group="group"))
    found = evaluate(plain_bundle, dataset, engine=ONNX)
    assert found.without_leaking is not None
    assert (found.overall.pictures, found.without_leaking.pictures) == (16, 15)
    rest = [one for one in found.scored.predictions if one.picture.group != "group 0"]
    assert found.without_leaking.metrics == compare([p.score for p in rest], [p.picture.score for p in rest])
    assert evaluate(plain_bundle, dataset, "validation", engine=ONNX).without_leaking is None


@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_bad_pictures_are_listed_and_left_out(
    plain_bundle: Path, checkpoint: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    paths = sorted(pictures.iterdir())
    paths[2] = tmp_path / "damaged.jpg"
    paths[2].write_bytes(paths[3].read_bytes()[:200])
    paths[6] = tmp_path / "gone.jpg"
    dataset = read_labels(write_labels(tmp_path / "labels.csv", pictures, {"path": paths}))
    model, engine = (plain_bundle, ONNX) if kind == "bundle" else (checkpoint, Engine())
    seen = []
    found = evaluate(model, dataset, engine=engine, on_picture=seen.append)
    assert len(seen) == 16
    assert found.overall.pictures == 14
    assert [(Path(one.picture.name).name, bool(one.error)) for one in found.scored.unreadable] == [
        ("damaged.jpg", True),
        ("gone.jpg", True),
    ]
    assert [one["path"] for one in found.to_dict()["unreadable"]] == [str(paths[2]), str(paths[6])]
    assert str(paths[2]) not in found.to_csv()


def test_pictures_of_parquet_and_an_empty_cell(
    plain_bundle: Path, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(pictures.iterdir())]
    cells[5] = {"bytes": None, "path": None}  # type: ignore[dict-item]
    table = pa.table({"image": cells, "score": np.random.default_rng(0).uniform(1, 5, 32)})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    dataset = read_parquet([tmp_path / "t.parquet"])
    found = evaluate(plain_bundle, dataset, "all", engine=ONNX)
    assert (found.overall.pictures, len(found.scored.unreadable)) == (31, 1)
    assert scores_of(evaluate(checkpoint, dataset, "all", engine=Engine(precision="fp32"))) == pytest.approx(
        scores_of(found), abs=4e-5
    )


def test_the_predictions_as_a_table(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    columns = {
        "subset": ["a, b"] * 32,
        "distortion": ["blur", ""] * 16,
        "reference": [f"content {i // 4}" for i in range(32)],
        "split": ["test"] * 16 + ["train"] * 16,
    }
    found = evaluate(plain_bundle, read_labels(write_labels(tmp_path / "labels.csv", pictures, columns)), engine=ONNX)
    rows = list(csv.DictReader(io.StringIO(found.to_csv(), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 16
    for row, one in zip(rows, found.scored.predictions, strict=True):
        assert np.float32(row["score"]) == np.float32(one.score)
        assert float(row["label"]) == one.picture.score
        assert (row["path"], row["subset"], row["split"]) == (one.picture.name, "a, b", "test")
        assert row["distortion"] == (one.picture.distortion or "")
        assert row["group"] == one.picture.reference


def test_all_pictures_have_the_parts_of_an_official_split_only(
    plain_bundle: Path, dataset: Dataset, pictures: Path
) -> None:
    rows = list(csv.DictReader(io.StringIO(evaluate(plain_bundle, dataset, "all", engine=ONNX).to_csv())))
    assert [row["split"] for row in rows] == ["train", "validation", "test", "test"] * 8
    bare = Dataset("bare", tuple(dataclasses.replace(one, part=None) for one in dataset.pictures[:3]))
    few = evaluate(plain_bundle, bare, "all", engine=ONNX)  # too few to be split
    assert few.selection.by is None
    assert few.overall.intervals == {}
    assert "5 pictures" in few.overall.metrics.note
    assert {row["split"] for row in csv.DictReader(io.StringIO(few.to_csv()))} == {""}


def test_the_precision_of_a_checkpoint(checkpoint: Path) -> None:
    with open_scorer(checkpoint, Engine(precision="bf16", batch_size=7)) as scorer:
        assert isinstance(scorer, TorchScorer)
        assert (scorer.resolved["precision"], scorer.resolved["batch_size"]) == ("bf16", 7)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Engine("onnxruntime"), "is a checkpoint, which PyTorch scores: drop --backend"),
        (Engine(input="image"), "is a checkpoint, which PyTorch scores: drop --backend and --input"),
        (Engine(device=[0]), "is a checkpoint, which takes the first GPU: drop --device"),
    ],
)
def test_a_checkpoint_refuses_what_is_for_bundles(checkpoint: Path, engine: Engine, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_scorer(checkpoint, engine)


def test_a_bundle_refuses_backbone_weights(plain_bundle: Path) -> None:
    with pytest.raises(UsageError, match="is a bundle, which has its backbone's weights"):
        open_scorer(plain_bundle, Engine(backbone_weights="hub"))


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle or checkpoint"):
        open_scorer(tmp_path / "gone.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(BundleError, match="not a checkpoint of glia-rt"):
        open_scorer(tmp_path / "text.pt")


def test_parts_that_are_none(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="there is no part 'testing': give one of train, validation, test, all"):
        select(dataset, "testing", SEED)  # type: ignore[arg-type]


def test_a_model_trained_on_another_split_of_the_labels(
    checkpoint: Path, plain_model: Model, pictures: Path, tmp_path: Path
) -> None:
    drawn = read_labels(write_labels(tmp_path / "labels.csv", pictures, {"split": ["train"] * 16 + ["test"] * 16}))
    free = Dataset(drawn.name, tuple(dataclasses.replace(one, part=None) for one in drawn.pictures))
    contract: Contract = Checkpoint.load(checkpoint).contract
    record = {"labels": drawn.name, "labels_sha256": free.labels_sha256, "options": {"seed": 5}}
    make_checkpoint(plain_model, contract, "random", trained_on=record).save(tmp_path / "five.pt")

    def warning(dataset: Dataset, part: Choice, seed: int) -> str:
        return score(tmp_path / "five.pt", select(dataset, part, seed)).warning

    other_seed = "split with seed 5: some pictures of this part were trained on; give --seed 5"
    assert other_seed in warning(free, "test", 6)
    assert other_seed in warning(dataclasses.replace(free, name="another path of the same file"), "test", 6)
    assert warning(free, "test", 5) == warning(free, "all", 6) == ""
    assert warning(drawn, "test", 6) == ""  # the official test part does not depend on the seed
    # Another group column, or further rows, give another split, whatever the seed.
    grouped = tuple(dataclasses.replace(one, group=str(i // 3)) for i, one in enumerate(free.pictures))
    for changed in (grouped, free.pictures[1:]):
        labels = dataclasses.replace(free, pictures=changed)
        assert "when it had other labels, or with other columns" in warning(labels, "validation", 5)
        assert warning(dataclasses.replace(labels, name="others"), "validation", 5) == ""


def test_two_models_are_compared_on_the_pictures_that_both_read(plain_bundle: Path, dataset: Dataset) -> None:
    chosen = select(dataset, "test", SEED)
    first = score(plain_bundle, chosen, ONNX)
    upside_down = tuple(Prediction(one.picture, -one.score) for one in first.predictions[1:])
    found = difference(chosen, first, dataclasses.replace(first, predictions=upside_down))
    assert found.pictures == 15
    assert found.second == pytest.approx(-found.first)
    assert judge(chosen, first).overall.pictures == 16


def page_of(evaluation: Evaluation, folder: Path) -> str:
    write_report(folder / "report.html", evaluation)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.iterdir())
    paths[3] = tmp_path / "\"'><img src=x onerror=alert(1)>&.jpg"
    paths[3].write_bytes(b"hello")
    labels = write_labels(tmp_path / "labels.csv", pictures, {"path": paths, "subset": ["<b>one</b>", "two"] * 16})
    found = evaluate(plain_bundle, read_labels(labels), "all", engine=ONNX)
    html = page_of(found, tmp_path)
    assert html.count("<svg") == 2
    assert len(re.findall(r'<use[^>]*style="fill: var\(--series-1\)', html)) == 2 * 31  # a point a picture and plot
    assert html.count("stroke: var(--series-2)") == 1  # the curve
    assert html.count('src="data:image/webp;base64,') == SHOWN
    assert "<b>one</b>" not in html
    assert "<img src=x" not in html
    assert "31 pictures, of all parts; 1 more could not be read" in " ".join(html.split())
    assert f"{found.overall.metrics.srcc:.3f}" in html
    assert not re.findall(r"#0[0-9a-f]{5}\b", html)
    for attribute in re.findall(r'(?:src|href)="([^"]*)', html):
        assert attribute.startswith(("#", "data:image/webp;base64,"))


def test_the_worst_misses_come_first(plain_bundle: Path, dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(plain_bundle, dataset, "all", engine=ONNX)
    mapping = found.mapping
    assert mapping is not None
    misses = {
        one.picture.name: abs(one.picture.score - mapping.apply([one.score])[0]) for one in found.scored.predictions
    }
    worst = sorted(misses, key=lambda name: -misses[name])[:SHOWN]
    html = page_of(found, tmp_path)
    assert sorted(worst, key=html.index) == worst
    assert max(html.index(name) for name in worst) > 0


def test_the_page_of_a_line_and_of_nothing(plain_bundle: Path, dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(plain_bundle, dataset, engine=ONNX)
    pairs = zip(found.scored.predictions, [2, 1, 0, 2, 2], [1, 1, 1, 0, 2], strict=False)
    few = tuple(Prediction(dataclasses.replace(one.picture, score=y), x) for one, x, y in pairs)
    line = judge(found.selection, dataclasses.replace(found.scored, predictions=few))
    html = page_of(line, tmp_path)
    assert "it ended in a constant; PLCC and RMSE are those of a straight line." in html
    assert "The line is the straight line that fits best" in html
    nothing = judge(found.selection, dataclasses.replace(found.scored, predictions=()))
    assert nothing.mapping is None
    assert "<svg" not in page_of(nothing, tmp_path)
    assert "fewer than 2 pictures" in page_of(nothing, tmp_path)
