"""The demo, shortened: the chain, and what it may overwrite."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from glia_export.demo import run as demo
from glia_rt.backends.cuda.engine import engines
from glia_rt.bundle import Bundle
from glia_rt.cli.main import main
from glia_rt.results import COLUMNS
from glia_rt.starter.paths import STARTER
from glia_train.distortions import LEVELS

DISTORTED = ("jpeg", "contrast")
FILES = {*demo.WRITTEN, ".glia-demo"}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / STARTER  # a folder of this name is not taken for the model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "DISTORTED", DISTORTED)
        patch.setattr(demo, "TUNING_SECONDS", 5.0)
        patch.chdir(folder.parent)
        assert main(["demo", "--out", STARTER]) == 0
    return folder


@pytest.mark.slow
def test_the_folder_holds_every_piece_of_the_chain(output: Path) -> None:
    assert {path.name for path in output.iterdir()} == FILES
    bundle = Bundle.open(output / "demo.glia")
    assert bundle.contract.score.range == (0, 100)
    assert [record.target for _, record in engines(bundle)] == ["tensorrt-rtx"]  # type: ignore[union-attr]
    for name, identity in (("scores.csv", Bundle.open(STARTER).identity), ("scores-tuned.csv", bundle.identity)):
        rows = table(output / name)
        assert tuple(rows[0]) == COLUMNS
        assert {row["status"] for row in rows} == {"ok"}
        assert json.loads((output / f"{name}.meta.json").read_text())["bundle_identity"] == identity
    assert len(table(output / "scores.csv")) == 10 * (1 + 2 * LEVELS)


@pytest.mark.slow
def test_labels_are_levels_and_leave_out_what_does_not_get_worse(output: Path) -> None:
    labels = {row["path"]: float(row["score"]) for row in table(output / "labels.csv")}
    assert labels["pictures/coffee-original.png"] == 100
    assert labels["pictures/coffee-jpeg-1.png"] == 80
    assert labels["pictures/coffee-jpeg-5.png"] == 0
    assert not any("contrast" in path for path in labels)


@pytest.mark.slow
def test_the_held_out_pictures_are_scored(output: Path) -> None:
    split = table(output / "run" / "split.csv")
    held_out = {row["path"] for row in split if row["split"] == "test"}
    scored = table(output / "scores-tuned.csv")
    assert {Path(row["path"]).name for row in scored} == {Path(name).name for name in held_out}
    trained_on = {row["reference"] for row in split if row["split"] == "train"}
    assert not trained_on & {row["reference"] for row in split if row["split"] == "test"}


@pytest.mark.slow
def test_the_report_says_what_its_figures_are(output: Path) -> None:
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "A level is no opinion." in page
    assert "grey levels" in page  # the selftest's views
    assert "relative L2 error" not in page  # a calibrated model is held by its scores
    assert "for tensorrt-rtx" in page


@pytest.mark.slow
def test_the_first_half_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from glia_export.demo import run as demo\n"
        "demo.DISTORTED = ('jpeg',)\n"
        f"copies, scored, _ = demo.score_with_starter(Path({str(tmp_path)!r}), demo.Stages(print))\n"
        "assert len(copies) == len(scored) == 60\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "precious.txt").write_text("precious")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
    assert f"{tmp_path} holds files that no demo wrote: give another --out" in capsys.readouterr().err
    assert (tmp_path / "pictures" / "precious.txt").read_text() == "precious"


def test_an_earlier_demo_is_replaced_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".glia-demo").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} holds an earlier demo: give --overwrite" in capsys.readouterr().err
