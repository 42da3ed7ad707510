"""Training end to end on small pictures: what a run leaves, what it can be held to, and how it ends early."""

from __future__ import annotations

import csv
import dataclasses
import errno
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.linear import Linear, LinearConfig
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from scipy.stats import spearmanr

from glia_rt.errors import BadImageError, GliaError, OutputExistsError, UsageError
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.samples import stack
from glia_train import train as training
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.csv import read_labels
from glia_train.datasets.splits import split_dataset
from glia_train.machine import Machine
from glia_train.models.glianet import ModelConfig
from glia_train.models.table import FAMILIES, untrained
from glia_train.options import TrainOptions
from glia_train.run_folder import TrainResult
from glia_train.schedule import Schedule
from glia_train.train import train

CONFIG = ModelConfig(backbone="vit_tiny_r_s16_p8_224")
#: For what no model changes: a second of GLIANet is a thousand steps of this one.
LINEAR = LinearConfig()
OPTIONS = TrainOptions(epochs=2, batch_size=8, lr=3e-3)
FILES = {"checkpoint.pt", "run.json", "split.csv", "metrics.csv", "curves.png"}


@pytest.fixture(autouse=True)
def _linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures of six contents: 20, 5 and 5 in the three parts. The less noise, the better."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for content in range(6):
        coarse = Image.fromarray(rng.integers(60, 196, (4, 4, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((240, 228), Image.Resampling.BICUBIC)).astype(float)
        for level in range(5):
            noisy = np.clip(picture + rng.normal(scale=12 * level, size=picture.shape), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{content}-{level}.png")
            rows.append(f"{content}-{level}.png,{5 - level},{content}")
    (folder / "labels.csv").write_text("\n".join(["path,score,reference", *rows]))
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def run(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(read_labels(labels), tmp_path_factory.mktemp("run") / "new" / "run", CONFIG, OPTIONS, "random")


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(Checkpoint.load(path).weights)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first | second)


def test_a_run_leaves_five_files(run: TrainResult, labels: Path) -> None:
    folder = run.checkpoint.parent
    assert {path.name for path in folder.iterdir()} == FILES
    record = json.loads((folder / "run.json").read_text())
    assert record["labels"] == str(labels)
    assert record["pictures"] == {"train": 20, "validation": 5, "test": 5, "split_by": "reference"}
    assert record["config"] == dataclasses.asdict(CONFIG)
    assert record["options"] == {
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": None,
        "crops": 1,
        "lr": 3e-3,
        "backbone_lr": None,
        "fit_head": False,
        "train_on_validation": False,
        "warmup_epochs": 0.0,
        "weight_decay": 1e-2,
        "clip_norm": None,
        "ema": None,
        "loss": "mse-rho",
        "ranking": 0.0,
        "precision": None,
        "seed": 3407,
        "workers": None,
        "cache": True,
        "half_weights": False,
        "adapter_only": False,
        "score_range": None,
        "scale": None,
        "measure_test": True,
        "time_limit_s": None,
    }
    assert record["machine"]["precision"] == Machine.here().precision
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 < float(row["loss"]) < 0.5 for row in rows)
    assert [float(row["lr"]) for row in rows] == pytest.approx([1.5e-3, 0])
    assert all(float(row["crops_per_s"]) > 0 and 0 <= float(row["waiting"]) < 1 for row in rows)
    assert all(-1 <= float(row["srcc"]) <= 1 for row in rows)
    with Image.open(folder / "curves.png") as plot:
        assert plot.size == (1000, 400)
    assert (folder / "split.csv").read_text() == split_dataset(read_labels(labels), 3407).to_csv()


def test_the_checkpoint_says_what_it_is(run: TrainResult) -> None:
    checkpoint = Checkpoint.load(run.checkpoint)
    assert checkpoint.contract.score.range == (1.0, 5.0)
    assert checkpoint.backbones["backbone"]["source"] == "random"
    assert checkpoint.metrics == run.metrics.to_dict()
    facts = checkpoint.trained_on
    assert (facts["epoch"], facts["calibrated_on"], facts["measured_on"]) == (2, 20, "test")


def test_scores_are_calibrated_on_the_training_part(run: TrainResult) -> None:
    checkpoint = Checkpoint.load(run.checkpoint)
    model = checkpoint.build_model()

    def score(pictures: Any) -> tuple[np.ndarray, np.ndarray]:
        inputs = [make_inputs(read_image(picture.path), checkpoint.contract) for picture in pictures]
        with torch.no_grad():
            stacked = (torch.from_numpy(array) for array in stack(inputs).values())
            return model.score(*stacked).numpy(), np.array([picture.score for picture in pictures])

    scores, labels = score(run.split.train)
    # What marks least squares: the error has no mean and does not go with the score. Training is in bf16 where the
    # hardware has it, this is float32; the limit is a share of the labels' spread.
    assert abs(np.mean(scores - labels)) < 0.05
    assert np.polyfit(scores, labels, 1) == pytest.approx([1, 0], abs=0.15)
    held_out, held_out_labels = score(run.split.test)
    assert spearmanr(held_out, held_out_labels).statistic == pytest.approx(run.metrics.srcc, abs=0.11)


def test_only_what_may_train_has_trained(run: TrainResult) -> None:
    before, after = untrained(CONFIG, "random", 3407)[0].state_dict(), weights_of(run.checkpoint)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("backbone."))
    frozen = [key for key in before if not key.startswith("backbone.") and torch.equal(before[key], after[key])]
    assert frozen == []


@pytest.mark.slow
def test_training_learns(labels: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=8, batch_size=10, lr=3e-3)
    result = train(read_labels(labels), tmp_path, CONFIG, options, "random")
    assert result.metrics.srcc > 0.85
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_seed_fixes_every_weight_whatever_the_workers(
    run: TrainResult, labels: Path, tmp_path: Path, workers: int
) -> None:
    options = TrainOptions(epochs=2, batch_size=8, lr=3e-3, workers=workers)
    again = train(read_labels(labels), tmp_path, CONFIG, options, "random")
    assert same(weights_of(again.checkpoint), weights_of(run.checkpoint))


def test_another_seed_is_another_run(run: TrainResult, labels: Path, tmp_path: Path) -> None:
    other = train(read_labels(labels), tmp_path, CONFIG, TrainOptions(epochs=1, batch_size=8, seed=1), "random")
    assert not same(weights_of(other.checkpoint), weights_of(run.checkpoint))
    assert other.split != run.split


def test_the_caller_keeps_its_random_numbers(labels: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    train(read_labels(labels), tmp_path, LINEAR, TrainOptions(epochs=1, batch_size=20), "random")
    assert torch.equal(torch.get_rng_state(), state)


def test_tuned_backbone_trains_and_plcc_loss(labels: Path, tmp_path: Path) -> None:
    config = ModelConfig(backbone=CONFIG.backbone, tune_backbone=True)
    options = TrainOptions(epochs=1, batch_size=10, loss="plcc")
    result = train(read_labels(labels), tmp_path, config, options, "random")
    before, after = untrained(config, "random", 3407)[0].state_dict(), weights_of(result.checkpoint)
    assert not torch.equal(before["backbone.cls_token"], after["backbone.cls_token"])


def test_adapter_only(labels: Path, tmp_path: Path) -> None:
    backbone = untrained(CONFIG, seed=5)[0].backbone
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    options = TrainOptions(epochs=1, batch_size=20, adapter_only=True)
    result = train(read_labels(labels), tmp_path / "run", CONFIG, options, str(tmp_path / "backbone.pth"))
    checkpoint = Checkpoint.load(result.checkpoint)
    assert checkpoint.adapter_only
    assert checkpoint.backbones["backbone"]["source"] == "backbone.pth"
    checkpoint.build_model(str(tmp_path / "backbone.pth"))


def test_the_last_calibration_sees_the_whole_training_part(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CALIBRATION_SAMPLE", 6)
    result = train(read_labels(labels), tmp_path, LINEAR, OPTIONS, "random")
    assert Checkpoint.load(result.checkpoint).trained_on["calibrated_on"] == 20


def test_learning_rate_falls_along_a_cosine() -> None:
    options = TrainOptions(epochs=2, lr=0.5)
    schedule = Schedule(options, steps_per_epoch=4, progress=Progress(disable=True))
    rates = []
    for _ in range(8):
        rates.append(schedule.learning_rate)
        schedule.step(rate=1.0)
    assert rates == pytest.approx([0.25 * (1 + np.cos(np.pi * i / 8)) for i in range(8)])
    assert schedule.done == 1
    assert schedule.learning_rate == 0


def test_the_learning_rate_rises_first() -> None:
    options = TrainOptions(epochs=4, warmup_epochs=1, lr=0.5)
    schedule = Schedule(options, steps_per_epoch=4, progress=Progress(disable=True))
    rates = []
    for _ in range(16):
        rates.append(schedule.learning_rate)
        schedule.step(rate=1.0)
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.25 * (1 + np.cos(np.pi * i / 12)) for i in range(12)])


def test_a_model_without_a_backbone_has_none_to_leave_out(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--adapter-only: a model of family linear has no backbone to leave out"):
        train(read_labels(labels), tmp_path, LINEAR, TrainOptions(epochs=1, batch_size=8, adapter_only=True), "random")


def test_a_time_limit_ends_the_run_with_a_whole_checkpoint(labels: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=100_000, batch_size=4, time_limit_s=3)
    result = train(read_labels(labels), tmp_path, LINEAR, options, "random")
    assert 1 <= result.epochs < 100_000
    assert Checkpoint.load(result.checkpoint).trained_on["epoch"] == result.epochs


class Tripwire:
    """A file for a console; Ctrl-C comes when a line with this text is written."""

    def __init__(self, text: str = "\0") -> None:
        self.text = text
        self.lines = ""

    def write(self, text: str) -> None:
        self.lines += text
        if self.text in text:
            raise KeyboardInterrupt

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_the_console_gets_a_line_an_epoch(labels: Path, tmp_path: Path) -> None:
    file = Tripwire()
    options = TrainOptions(epochs=2, batch_size=20)
    train(read_labels(labels), tmp_path, CONFIG, options, "random", console=Console(file=file))  # type: ignore[arg-type]
    first, *epochs = file.lines.splitlines()
    assert first.startswith("20 pictures to train on, 5 to validate with, 5 to test with, split by reference; ")
    assert first.endswith("512,113 trainable parameters")
    begins = ["epoch 1/2", "epoch 2/2", "calibrating on all 20 training pictures", "test part"]
    assert [line.split(": ")[0] for line in epochs] == begins
    assert all("loss 0." in line and "validation SRCC" in line and "PLCC" in line for line in epochs[:2])
    assert epochs[-1].startswith("test part: SRCC ")


def test_ctrl_c_leaves_the_last_whole_checkpoint(labels: Path, tmp_path: Path) -> None:
    console = Console(file=Tripwire("epoch 2/9"))  # type: ignore[arg-type]
    options = TrainOptions(epochs=9, batch_size=20)
    with pytest.raises(KeyboardInterrupt, match=r"training stopped: .*checkpoint.pt is of epoch 2"):
        train(read_labels(labels), tmp_path, LINEAR, options, "random", console=console)
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert checkpoint.trained_on["epoch"] == 2
    assert checkpoint.calibrated
    assert checkpoint.calibration != (1.0, 0.0)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"state.pt"}


def test_a_real_ctrl_c(labels: Path, tmp_path: Path) -> None:
    code = (
        "from helpers.linear import Linear, LinearConfig; from glia_train.models.table import FAMILIES;"
        "from glia_train.options import TrainOptions; from glia_train.train import train;"
        "from glia_train.datasets.csv import read_labels;"
        "FAMILIES['linear'] = Linear;"
        f"train(read_labels({str(labels)!r}), {str(tmp_path / 'run')!r}, LinearConfig(),"
        "TrainOptions(epochs=100_000, batch_size=20), 'random')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    metrics = tmp_path / "run" / "metrics.csv"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not metrics.exists():
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode != 0
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("KeyboardInterrupt: training stopped: ")
    assert last.endswith("; --resume goes on with it")
    epoch = int(last.partition(";")[0].rpartition(" ")[2])
    assert Checkpoint.load(tmp_path / "run" / "checkpoint.pt").trained_on["epoch"] - epoch in (0, 1)


def test_a_run_is_not_overwritten_unasked(run: TrainResult, labels: Path) -> None:
    before = run.checkpoint.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        train(read_labels(labels), run.checkpoint.parent, CONFIG, OPTIONS, "random")
    assert run.checkpoint.read_bytes() == before


def test_overwriting_leaves_nothing_of_the_run_before(labels: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=1, batch_size=20)
    train(read_labels(labels), tmp_path, LINEAR, options, "random")
    file = Tripwire("20 pictures to train on")
    with pytest.raises(KeyboardInterrupt):
        train(read_labels(labels), tmp_path, LINEAR, options, "random", overwrite=True, console=Console(file=file))  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "split.csv"}
    train(read_labels(labels), tmp_path, LINEAR, options, "random")  # nothing of worth is in the way


def test_an_output_that_is_no_folder(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file: cannot hold a run"):
        train(read_labels(labels), tmp_path / "file", LINEAR, OPTIONS, "random", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 128}, "20 training pictures do not fill one batch of 128: give --batch-size 16"),
        ({"score_range": (1.0, 4.0)}, r"6 of 30 scores lie outside 1 to 4, first 5 of \d-0.png"),
        ({"adapter_only": True}, "nobody could restore it"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(
    labels: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(read_labels(labels), tmp_path / "run", CONFIG, TrainOptions(**{"batch_size": 8} | options), "random")
    assert not (tmp_path / "run").exists()


def test_a_declared_range_is_the_contracts(labels: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=1, batch_size=20, score_range=(0.0, 10.0))
    result = train(read_labels(labels), tmp_path, LINEAR, options, "random")
    assert Checkpoint.load(result.checkpoint).contract.score.range == (0.0, 10.0)


def test_labels_are_mapped_to_the_models_own_scale(labels: Path, tmp_path: Path) -> None:
    """The score range 1 to 5 becomes 0 to 100, in the split, the contract and the scores."""
    options = TrainOptions(epochs=1, batch_size=20, score_range=(1.0, 5.0))
    plain = train(read_labels(labels), tmp_path / "plain", LINEAR, options, "random")
    scaled = train(
        read_labels(labels), tmp_path / "scaled", LINEAR, dataclasses.replace(options, scale=(0.0, 100.0)), "random"
    )
    one, other = Checkpoint.load(plain.checkpoint), Checkpoint.load(scaled.checkpoint)
    assert other.contract.score.range == (0.0, 100.0)
    assert [p.score for p in scaled.split.test] == pytest.approx([25 * (p.score - 1) for p in plain.split.test])
    assert other.calibration[1] == pytest.approx(25 * (one.calibration[1] - 1), rel=1e-3)
    assert scaled.metrics.srcc == pytest.approx(plain.metrics.srcc, abs=1e-6)


def test_a_diverging_loss_is_an_error_with_advice(labels: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=3, batch_size=5, lr=1e30)
    with pytest.raises(GliaError, match=r"the loss is nan in epoch 1: give an --lr under 1e\+30"):
        train(read_labels(labels), tmp_path, CONFIG, options, "random")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_pictures_that_all_look_alike_cannot_be_calibrated(tmp_path: Path) -> None:
    rows = [f"{i}.png,{i}" for i in range(10)]
    for i in range(10):
        Image.new("RGB", (32, 32), "grey").save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("\n".join(["path,score", *rows]))
    dataset = read_labels(tmp_path / "labels.csv")
    with pytest.raises(GliaError, match="one score"):
        train(
            dataset,
            tmp_path / "run",
            CONFIG,
            TrainOptions(epochs=1, batch_size=7),
            "random",
        )


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    for i in range(8):
        Image.new("RGB", (32, 32), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    bad = tmp_path / "3.png"
    bad.write_bytes(b"")
    (tmp_path / "5.png").write_text("hello")
    (tmp_path / "labels.csv").write_text("path,score\n" + "".join(f"{i}.png,{i}\n" for i in range(8)))
    dataset = read_labels(tmp_path / "labels.csv")
    with pytest.raises(BadImageError) as caught:
        train(
            dataset,
            tmp_path / "run",
            CONFIG,
            TrainOptions(epochs=1, batch_size=5),
            "random",
        )
    assert str(caught.value).startswith(f"{bad}: empty file, and 1 more pictures cannot be read")
    assert not (tmp_path / "run").exists(), "training had begun"


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 2},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"loss": "mse"},
        {"seed": -1},
        {"workers": 0},
        {"score_range": (5.0, 1.0)},
        {"scale": (100.0, 0.0)},
        {"time_limit_s": 0.0},
        {"micro_batch_size": 0},
        {"crops": 0},
        {"warmup_epochs": 10.0},
        {"warmup_epochs": -1.0},
        {"clip_norm": 0.0},
        {"ema": 1.0},
        {"precision": "fp8"},
    ],
    ids=str,
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        TrainOptions(**options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="momentum"):
        TrainOptions(momentum=0.9)  # type: ignore[call-arg]


def test_bf16_is_used_where_the_processor_computes_in_it() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if torch.cuda.is_available():
        assert Machine.here().device.type == "cuda"
    else:
        expected = "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
        assert Machine.here().precision == expected


def test_a_test_part_that_is_not_measured_is_not_read(labels: Path, tmp_path: Path) -> None:
    for path in labels.parent.iterdir():
        shutil.copy(path, tmp_path)
    dataset = read_labels(tmp_path / labels.name)
    for picture in split_dataset(dataset, OPTIONS.seed).test:
        assert picture.path is not None
        picture.path.write_bytes(b"no picture")
    with pytest.raises(BadImageError):
        train(dataset, tmp_path / "measured", LINEAR, OPTIONS, "random")
    result = train(dataset, tmp_path / "run", LINEAR, dataclasses.replace(OPTIONS, measure_test=False), "random")
    assert Checkpoint.load(result.checkpoint).trained_on["measured_on"] == "validation"


def test_what_cannot_be_written_is_named(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics.csv" / "in the way").mkdir(parents=True)
    with pytest.raises(UsageError, match="run: cannot hold a run"):
        train(read_labels(labels), tmp_path / "run", LINEAR, OPTIONS, "random")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: cannot hold a run"):
        train(read_labels(labels), tmp_path / "file", LINEAR, OPTIONS, "random")


def test_a_disk_that_fills_up_ends_the_run_with_one_line(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/state.pt")

    monkeypatch.setattr(training.RunFolder, "write_state", full)
    with pytest.raises(GliaError, match=r"^run/state.pt: No space left on device; mend that, and --resume goes on$"):
        train(read_labels(labels), tmp_path / "run", LINEAR, OPTIONS, "random")


def test_too_few_pictures_for_any_batch(labels: Path, tmp_path: Path) -> None:
    dataset = read_labels(labels)
    few = dataclasses.replace(dataset, pictures=dataset.pictures[::6])  # of five contents: 3, 1 and 1
    with pytest.raises(UsageError, match="3 training pictures do not fill one batch of 8: give --batch-size 3"):
        train(few, tmp_path / "run", LINEAR, OPTIONS, "random")
