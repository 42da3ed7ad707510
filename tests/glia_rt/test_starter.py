"""The model that glia-rt ships, and its name."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from glia_rt import Scorer
from glia_rt.backends.cuda.engine import EngineRecord, build_command, engines
from glia_rt.bundle import Bundle
from glia_rt.cli.main import main
from glia_rt.errors import BundleError
from glia_rt.pixels.decode import read_image
from glia_rt.starter.paths import CARD, CHECKPOINT, FOLDER

MOST_BYTES = 30e6
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "starter"
Capture = pytest.CaptureFixture[str]


def test_it_scores_photographs_from_0_to_100(selftest_pictures: list[Path]) -> None:
    with Scorer.open("starter") as scorer:
        assert scorer.contract.score.range == (0, 100)
        scores = [scorer.score(path) for path in selftest_pictures]
    assert all(0 < score < 100 for score in scores)
    assert max(scores) - min(scores) > 5


def test_it_passes_its_own_selftest(capsys: Capture) -> None:
    assert main(["verify", "starter"]) == 0


def test_it_needs_no_torch(selftest_pictures: list[Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from glia_rt.cli.main import main\n"
        f"raise SystemExit(main(['score', 'starter', {str(selftest_pictures[0])!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert selftest_pictures[0].name in done.stdout


def test_a_path_of_that_name_goes_first(
    plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shutil.copytree(plain_bundle, tmp_path / "starter")
    monkeypatch.chdir(tmp_path)
    assert Bundle.open("starter").identity == Bundle.open(plain_bundle).identity
    assert main(["info", "starter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["family"] == "linear"


@pytest.mark.parametrize("name", ["./starter", "Starter", "starter/"])
def test_other_spellings_are_paths(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(name)


def test_what_is_shipped_is_small_and_has_its_terms() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    terms = (FOLDER / "NOTICE").read_text()
    assert "BIQ2021" in terms
    assert "EfficientNet-Lite0" in terms


def test_the_bundle_is_that_of_the_checkpoint() -> None:
    manifest = Bundle.open("starter").manifest
    assert manifest["checkpoint"]["sha256"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert manifest["card"]["text"]
    assert manifest["card"]["figures"]


def test_what_it_leaves_out_is_named_with_what_to_do(capsys: Capture) -> None:
    assert main(["build", "starter", "--target", "tensorrt-rtx", "--precision", "fp16"]) == 5
    assert "without scorer.fp16.onnx: `glia-rt export starter` makes a whole bundle of it" in capsys.readouterr().err


def test_gpus_take_the_graphs_that_there_are(tiny_bundle: Path) -> None:
    """FP16 by default, and FP32 where there is no FP16 file."""
    assert Bundle.open(tiny_bundle).gpu_precision("views") == Bundle.open(tiny_bundle).gpu_precision("image") == "fp16"
    bundle = Bundle.open("starter")
    assert bundle.gpu_precision("views") == bundle.gpu_precision("image") == "fp32"
    assert build_command(bundle, "tensorrt-rtx", "views", "fp32").endswith("--target tensorrt-rtx")


@pytest.mark.slow
def test_an_engine_of_it_goes_to_the_users_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    before = sorted(FOLDER.rglob("*"))
    assert main(["build", "starter", "--target", "tensorrt-rtx"]) == 0
    assert "starter has no FP16 file, so this is FP32" in capsys.readouterr().err
    bundle = Bundle.open("starter")
    [(path, record)] = engines(bundle)
    assert isinstance(record, EngineRecord)
    assert record.precision == "fp32"
    assert path.is_relative_to(tmp_path / "glia-rt" / bundle.identity)
    assert sorted(FOLDER.rglob("*")) == before


@pytest.mark.slow
def test_export_makes_the_whole_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selftest_pictures: list[Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "starter"]) == 0
    whole = tmp_path / "starter.glia"
    assert {path.name for path in whole.iterdir()} >= {"scorer.fp16.onnx", "image_scorer.fp16.onnx", "selftest"}
    with Scorer.open(whole, precision="fp32") as made, Scorer.open("starter", precision="fp32") as shipped:
        pixels = read_image(selftest_pictures[0])
        assert made.score(pixels) == pytest.approx(shipped.score(pixels), abs=1e-3)


@pytest.mark.slow
def test_training_starts_from_it(tmp_path: Path, pictures: Path) -> None:
    labels = tmp_path / "labels.csv"
    rows = [f"{path},{i % 7}" for i, path in enumerate(sorted(pictures.iterdir()))]
    labels.write_text("\n".join(["path,score", *rows]))
    args = ["--data", str(labels), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8"]
    assert main(["train", *args, "--from", "starter"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["from"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()


def test_it_is_the_model_that_was_measured() -> None:
    """And its card gives the figures that were measured."""
    named = json.loads((RESULTS / "models.json").read_text())["starter"]["sha256"]
    assert hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest() == named
    assert Bundle.open("starter").manifest["checkpoint"]["sha256"] == named
    measured = json.loads((RESULTS / "figures.json").read_text())["models"]

    def said(model: str, figure: str) -> str:
        found = measured[model][figure]
        return "{:.3f} ({:.3f} to {:.3f})".format(found["srcc"], *found["interval"])

    assert list(json.loads(CARD.read_text())["figures"].values()) == [
        said("starter", "overall"),
        said("starter", "within"),
        said("ridge", "overall"),
    ]


def blurred(photograph: Image.Image) -> Image.Image:
    return photograph.filter(ImageFilter.GaussianBlur(6))


def noisy(photograph: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 50, (*photograph.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(photograph) + noise, 0, 255).astype(np.uint8))


def compressed(photograph: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=5)
    return Image.open(file)


@pytest.mark.parametrize("ruin", [blurred, noisy, compressed])
def test_a_ruined_copy_scores_far_below_its_photograph(ruin: Callable[[Image.Image], Image.Image]) -> None:
    folder = Path(str(files("skimage"))) / "data"
    photographs = [Image.open(folder / f"{name}.png") for name in ("astronaut", "chelsea", "coffee")]
    with Scorer.open("starter") as scorer:
        before = scorer.score_batch(photographs)
        after = scorer.score_batch([ruin(photograph) for photograph in photographs])
    assert (after < before - 20).all()
