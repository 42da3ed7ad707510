"""The demo, shortened: the chain, and what it may overwrite."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from glia_export.demo import run as demo
from glia_rt.bundle import Bundle
from glia_rt.cli.main import main
from glia_rt.results import COLUMNS
from glia_train.checkpoint import Checkpoint
from glia_train.models.glianet import ModelConfig

FILES = {"data", "run", "checkpoint.pt", "demo.glia", "scores.csv", "scores.csv.meta.json", "report.html", ".glia-demo"}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "MODEL", ModelConfig(backbone="test_vit", heads=2, tune_backbone=True))
        patch.setattr(demo, "PICTURES", 130)
        patch.setattr(demo, "LEAST_TRAINING_SECONDS", 5.0)
        patch.setattr(demo, "RESERVED_SECONDS", 180.0)  # all of three minutes: the least training there is
        assert main(["demo", "--out", str(folder), "--minutes", "3"]) == 0
    return folder


@pytest.mark.slow
def test_the_folder_holds_every_piece_of_the_chain(output: Path) -> None:
    assert {path.name for path in output.iterdir()} == FILES
    assert Checkpoint.load(output / "checkpoint.pt").backbones["backbone"]["source"] == "random"
    bundle = Bundle.open(output / "demo.glia")
    assert bundle.contract.score.range == (0, 1)
    rows = table(output / "scores.csv")
    assert tuple(rows[0]) == COLUMNS
    assert {row["status"] for row in rows} == {"ok"}
    metadata = json.loads((output / "scores.csv.meta.json").read_text())
    assert metadata["bundle_identity"] == bundle.identity


@pytest.mark.slow
def test_the_held_out_pictures_are_scored(output: Path) -> None:
    split = table(output / "run" / "split.csv")
    held_out = {row["path"] for row in split if row["split"] == "test"}
    scored = table(output / "scores.csv")
    assert {Path(row["path"]).name for row in scored} == {Path(name).name for name in held_out}
    trained_on = {row["reference"] for row in split if row["split"] == "train"}
    assert not trained_on & {row["reference"] for row in split if row["split"] == "test"}


@pytest.mark.slow
def test_the_report_says_what_its_figures_are(output: Path) -> None:
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "random weights" in page
    assert "grey levels" in page  # the selftest's views
    assert "relative L2 error" not in page  # a calibrated model is held by its scores


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("precious")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
    assert f"{tmp_path} holds files that no demo wrote: give another --out" in capsys.readouterr().err
    assert (tmp_path / "data" / "precious.txt").read_text() == "precious"


def test_an_earlier_demo_is_replaced_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".glia-demo").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} holds an earlier demo: give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["2.9", "nan", "0"])
def test_too_few_minutes(tmp_path: Path, minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--minutes", minutes]) == 2
    assert "--minutes must be at least 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
