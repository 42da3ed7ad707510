"""Runs that are interrupted and resumed end with the weights of a run that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.labels import noise_dataset
from helpers.linear import Linear, LinearConfig

from glia_rt.errors import BundleError, OutputExistsError, UsageError
from glia_train import train as training
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.base import Dataset
from glia_train.learner import Learner
from glia_train.models.glianet import ModelConfig
from glia_train.models.table import FAMILIES
from glia_train.options import TrainOptions
from glia_train.train import Origin, train

LINEAR = LinearConfig()
GLIANET = ModelConfig(backbone="vit_tiny_r_s16_p8_224")
STEMMED = ModelConfig(backbone="vit_192x2_efficientnet_lite0", statistics=True)
OPTIONS = TrainOptions(epochs=6, batch_size=5, crops=2, lr=3e-3, warmup_epochs=0.5, clip_norm=1.0, ema=0.9)


@pytest.fixture(autouse=True)
def _linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return noise_dataset(tmp_path_factory.mktemp("pictures"), 36, 40, 50)


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    checkpoint = Checkpoint.load(path)
    facts = {"metrics": checkpoint.metrics, "calibration": checkpoint.calibration}
    return dict(checkpoint.weights), facts


def assert_same(first: Path, second: Path) -> None:
    (weights, facts), (others, other_facts) = contents(first), contents(second)
    assert facts == other_facts
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


class Crash(BaseException):
    """What no code catches."""


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    taken = 0
    real = Learner._step

    def step(self: Learner, *arguments: Any) -> float:
        nonlocal taken
        if taken == steps:
            raise Crash
        taken += 1
        return real(self, *arguments)

    monkeypatch.setattr(Learner, "_step", step)


@pytest.mark.parametrize(
    ("config", "save_seconds", "epochs", "pictures"),
    [(LINEAR, 0.0, 6, 36), (LINEAR, 1000.0, 6, 36), (GLIANET, 0.0, 3, 15), (STEMMED, 0.0, 2, 15)],
    ids=["every step", "every epoch", "every step, with a cache", "every step, with a fitted head"],
)
def test_a_run_stopped_at_a_random_step(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    save_seconds: float,
    epochs: int,
    pictures: int,
) -> None:
    """The state is that of the step before, or of the epoch before."""
    monkeypatch.setattr(training, "SAVE_SECONDS", save_seconds)
    options = dataclasses.replace(OPTIONS, epochs=epochs, fit_head=config is STEMMED)
    dataset = dataclasses.replace(dataset, pictures=dataset.pictures[:pictures])
    undisturbed = train(dataset, tmp_path / "whole", config, options, "random")
    steps = random.Random(int(save_seconds)).randrange(1, epochs * (2 * int(0.72 * pictures) // 5))
    with monkeypatch.context() as patch:
        crash_after(patch, steps)
        with pytest.raises(Crash):
            train(dataset, tmp_path / "run", config, options, "random")
    resumed = train(dataset, tmp_path / "run", config, options, "random", resume=True)
    assert_same(undisturbed.checkpoint, resumed.checkpoint)
    assert resumed.metrics == undisturbed.metrics
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("checkpoint.pt", "run.json", "split.csv", "metrics.csv", "curves.png")
    }


PROGRAM = """
import json, sys
from helpers.linear import Linear, LinearConfig
from glia_train.datasets.csv import read_labels
from glia_train.models.table import FAMILIES
from glia_train.options import TrainOptions
from glia_train import train as training
FAMILIES["linear"] = Linear
training.SAVE_SECONDS = 0.0
options = TrainOptions(**json.loads(sys.argv[3]))
training.train(read_labels(sys.argv[1]), sys.argv[2], LinearConfig(), options, "random", resume=True)
"""


def test_a_run_killed_five_times(dataset: Dataset, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, epochs=12, crops=10)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    undisturbed = train(dataset, tmp_path / "whole", LINEAR, options, "random")
    command = [sys.executable, "-c", PROGRAM, dataset.name, str(tmp_path / "run")]
    command.append(json.dumps(dataclasses.asdict(options)))
    state, seen, kills = tmp_path / "run" / "state.pt", 0.0, 0
    wait = random.Random(5)
    while kills < 5:
        with subprocess.Popen(command, env=environment) as process:
            while process.poll() is None and not (state.exists() and state.stat().st_mtime > seen):
                time.sleep(0.005)
            time.sleep(wait.uniform(0, 0.3))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break
        seen = state.stat().st_mtime
    assert kills == 5, "the run was over before it was killed five times: make it longer"
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert_same(undisturbed.checkpoint, tmp_path / "run" / "checkpoint.pt")


def test_a_run_stopped_between_its_first_checkpoint_and_its_state(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a checkpoint, and must not pass for a complete run."""

    def crash(*_: Any) -> None:
        raise Crash

    undisturbed = train(dataset, tmp_path / "whole", LINEAR, OPTIONS, "random")
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "next_epoch", crash)
        with pytest.raises(Crash):
            train(dataset, tmp_path / "run", LINEAR, OPTIONS, "random")
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    resumed = train(dataset, tmp_path / "run", LINEAR, OPTIONS, "random", resume=True)
    assert_same(undisturbed.checkpoint, resumed.checkpoint)


def test_a_complete_run_is_not_run_again(dataset: Dataset, tmp_path: Path) -> None:
    result = train(dataset, tmp_path / "run", LINEAR, OPTIONS, "random")
    before = result.checkpoint.stat().st_mtime_ns
    again = train(dataset, tmp_path / "run", LINEAR, OPTIONS, "random", resume=True)
    assert again == result
    assert result.checkpoint.stat().st_mtime_ns == before


def test_resuming_nothing_begins(dataset: Dataset, tmp_path: Path) -> None:
    resumed = train(dataset, tmp_path / "resumed", LINEAR, OPTIONS, "random", resume=True)
    plain = train(dataset, tmp_path / "plain", LINEAR, OPTIONS, "random")
    assert_same(resumed.checkpoint, plain.checkpoint)


@pytest.fixture
def stopped(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        crash_after(patch, 25)
        with pytest.raises(Crash):
            train(dataset, tmp_path / "run", LINEAR, OPTIONS, "random")
    return tmp_path / "run"


def test_other_options_are_refused(dataset: Dataset, stopped: Path) -> None:
    def resume(dataset: Dataset = dataset, config: Any = LINEAR, weights: str = "random", **changed: Any) -> None:
        train(dataset, stopped, config, dataclasses.replace(OPTIONS, **changed), weights, resume=True)

    with pytest.raises(UsageError, match=r"the run was begun with lr 0\.003, not 0\.1: give the same, or --overwrite"):
        resume(lr=0.1)
    with pytest.raises(UsageError, match="the run was begun with another config"):
        resume(config=LinearConfig(size=8))
    with pytest.raises(UsageError, match="the run was begun with other labels"):
        resume(dataset=dataclasses.replace(dataset, pictures=dataset.pictures[:30]))
    resume(workers=1)


def test_a_run_in_progress_is_not_overwritten_unasked(dataset: Dataset, stopped: Path) -> None:
    with pytest.raises(OutputExistsError, match="give --resume to go on with it"):
        train(dataset, stopped, LINEAR, OPTIONS, "random")
    with pytest.raises(UsageError, match="give one of them"):
        train(dataset, stopped, LINEAR, OPTIONS, "random", resume=True, overwrite=True)


def test_a_damaged_state(dataset: Dataset, stopped: Path) -> None:
    state = stopped / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"state\.pt: damaged .*: give --overwrite"):
        train(dataset, stopped, LINEAR, OPTIONS, "random", resume=True)


# From a checkpoint


def test_a_checkpoint_is_trained_further(dataset: Dataset, tmp_path: Path) -> None:
    first = train(dataset, tmp_path / "first", LINEAR, OPTIONS, "random")
    small = dataclasses.replace(OPTIONS, epochs=1, lr=1e-12, warmup_epochs=0, ema=None)
    second = train(dataset, tmp_path / "second", LINEAR, small, Origin(None, first.checkpoint))
    for name, value in contents(first.checkpoint)[0].items():
        assert torch.allclose(value, contents(second.checkpoint)[0][name], atol=1e-9)
    assert Checkpoint.load(second.checkpoint).trained_on["from"] is not None
    with pytest.raises(UsageError, match="is another model than the options say"):
        train(dataset, tmp_path / "third", LinearConfig(size=8), small, Origin(None, first.checkpoint))


def test_a_frozen_backbone_may_be_tuned_later(dataset: Dataset, tmp_path: Path) -> None:
    options = TrainOptions(epochs=1, batch_size=10)
    first = train(dataset, tmp_path / "first", GLIANET, options, "random")
    tuned = dataclasses.replace(GLIANET, tune_backbone=True)
    second = train(dataset, tmp_path / "second", tuned, options, Origin(None, first.checkpoint))
    before, after = contents(first.checkpoint)[0], contents(second.checkpoint)[0]
    assert not torch.equal(before["backbone.cls_token"], after["backbone.cls_token"])
    assert Checkpoint.load(second.checkpoint).config.tune_backbone


def test_another_precision_is_refused(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose precision was left to the machine may be resumed on one that computes in another."""
    crash_after(monkeypatch, 3)
    with pytest.raises(Crash):
        train(dataset, tmp_path / "run", LINEAR, OPTIONS, "random")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    then = state["record"]["machine"]["precision"]
    now = "fp32" if then == "bf16" else "bf16"
    other = dataclasses.replace(OPTIONS, precision=now)
    with pytest.raises(UsageError, match=f"begun in {then}, not in {now}: give --precision {then}"):
        train(dataset, tmp_path / "run", LINEAR, other, "random", resume=True)
    monkeypatch.undo()
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
    same = dataclasses.replace(OPTIONS, precision=then)
    assert train(dataset, tmp_path / "run", LINEAR, same, "random", resume=True).epochs == OPTIONS.epochs
