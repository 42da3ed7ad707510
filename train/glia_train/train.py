"""Training on labelled pictures. A run is a folder with checkpoint.pt, run.json, split.csv and metrics.csv."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glia_rt import files
from glia_rt.cores import cpu_count
from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.steps import step
from glia_rt.versions import installed_versions
from glia_train.checkpoint import check_adapter_only, make_checkpoint
from glia_train.datasets.csv import read_labels
from glia_train.datasets.splits import Split, split_pictures
from glia_train.loader import InputLoader, check_pictures
from glia_train.loss import LOSSES, MIN_VARIANCE
from glia_train.metrics import Metrics, compare
from glia_train.models.base import Model
from glia_train.models.table import untrained
from glia_train.options import TrainOptions
from glia_train.schedule import Schedule, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

CHECKPOINT: Final = "checkpoint.pt"
RECORD: Final = "run.json"
SPLIT: Final = "split.csv"
METRICS: Final = "metrics.csv"

#: Number of training pictures that the calibration is fitted to after each epoch. Its two numbers need no more, and all
#: training pictures would cost half an epoch. The last checkpoint is calibrated on all.
CALIBRATION_SAMPLE: Final = 256


@dataclass(frozen=True)
class Machine:
    """The device and the precision of a run.

    Attributes:
        device: The first GPU, or the CPU.
        precision: Precision of the model's matrix products while training and measuring. The head is always float32.
    """

    device: torch.device
    precision: Literal["bf16", "fp32"]

    @classmethod
    def here(cls) -> Machine:
        """Return the best that this machine has: a GPU before the CPU, and bf16 if the hardware computes in it."""
        if torch.cuda.is_available():
            device, bf16 = "cuda", torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            device, bf16 = "cpu", torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return cls(torch.device(device), "bf16" if bf16 else "fp32")

    @property
    def name(self) -> str:
        """Return the name of the device."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def raw_score(self, model: Model, inputs: Sequence[Tensor]) -> Tensor:
        """Return scores before calibration, float32 (N,), on the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = model.features(*(one.to(self.device) for one in inputs))
        return model.raw_score(features)


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        checkpoint: The checkpoint of the last epoch.
        split: The training part and the held-out part.
        metrics: Metrics of the calibrated scores of the held-out part, after the last epoch.
        epochs: Number of epochs; fewer than asked for if the time ran out.
    """

    checkpoint: Path
    split: Split
    metrics: Metrics
    epochs: int


def train(
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: Any,
    options: TrainOptions,
    backbone_weights: str,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a model on 80 % of the labelled pictures and measure it on the rest after every epoch.

    The folder always holds the checkpoint of the last complete epoch, calibrated and ready to export. After each epoch
    it is calibrated on `CALIBRATION_SAMPLE` training pictures, and at the end on all training pictures.

    Args:
        labels: A CSV, as for `glia_train.datasets.csv.read_labels`.
        out: The folder of the run, which is made if it does not exist.
        config: The config of a family, which fixes the architecture.
        options: The options of training.
        backbone_weights: "hub", "random" or a file, as for `glia_train.backbones.load_backbone_weights`.
        overwrite: Replace the run that `out` holds.
        console: Shows a progress bar and one line for each epoch; None for silence.

    Raises:
        OutputExistsError: `out` holds a checkpoint, and `overwrite` is not given.
        UsageError: The labels cannot be used, or some options do not go together.
        BundleError: The backbone's weights do not fit.
        BadImageError: Some pictures cannot be read. This is found before training begins.
        GliaError: The loss is not finite, or the model gives all pictures the same score.
        KeyboardInterrupt: The user pressed Ctrl-C. The message names the epoch of the checkpoint in `out`.
    """
    out = Path(out)
    if not overwrite and (out / CHECKPOINT).exists():
        raise OutputExistsError(f"{out} holds a run: name another folder, or give --overwrite to replace it")
    with step(f"read {labels}"):
        split = split_pictures(read_labels(labels), options.seed)
    if len(split.train) < options.batch_size:
        fitting = 2 ** int(math.log2(len(split.train)))
        raise UsageError(
            f"{len(split.train)} training pictures do not fill one batch of {options.batch_size}: give --batch-size "
            f"{fitting} or, for more steps an epoch, less"
        )
    score_range = _score_range(split, options.score_range)
    machine, workers = Machine.here(), options.workers or cpu_count()
    with step(f"make the model, its backbone from {backbone_weights}"):
        model, contract = untrained(config, backbone_weights, options.seed)
    if options.adapter_only:
        check_adapter_only(model, backbone_weights)
    with step(f"decode {len(split.train + split.test)} pictures once"):
        check_pictures(split.train + split.test, workers)
    contract = contract.with_range(*score_range)
    model.to(machine.device)

    record = {
        "labels": os.fspath(labels),
        "pictures": {"train": len(split.train), "test": len(split.test), "split_by": split.by},
        "backbone_weights": backbone_weights,
        "family": model.family,
        "config": dataclasses.asdict(config),
        "options": dataclasses.asdict(options),
        "score_range": list(score_range),
        "machine": {"device": machine.name, "precision": machine.precision, "workers": workers},
        "versions": installed_versions("torch", "timm", "numpy"),
    }
    _start_folder(out)
    files.write_whole(out / RECORD, json.dumps(record, indent=2) + "\n")
    files.write_whole(out / SPLIT, split.to_csv())

    def say(line: str) -> None:
        if console is not None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    parameters = sum(parameter.numel() for parameter in model.trainable_parameters())
    say(
        f"{len(split.train)} pictures to train on, {len(split.test)} held out, split by {split.by}; {machine.name}, "
        f"{machine.precision}; {parameters:,} trainable parameters"
    )
    pictures = split.train + split.test
    training, testing = range(len(split.train)), range(len(split.train), len(pictures))
    sample = np.random.default_rng(options.seed).permutation(len(training))[:CALIBRATION_SAMPLE].tolist()
    learner = _Learner(model, InputLoader(pictures, contract, options.seed, workers), options, machine)

    def save(epoch: int, calibration: Sequence[int], held_out: npt.NDArray[np.float64]) -> Metrics:
        """Calibrate on the given training pictures, measure the held-out raw scores and write the checkpoint."""
        scale, offset = learner.calibrate(calibration)
        metrics = compare(scale * held_out + offset, [pictures[i].score for i in testing])
        make_checkpoint(
            model,
            contract,
            backbone_weights if backbone_weights in ("hub", "random") else Path(backbone_weights).name,
            adapter_only=options.adapter_only,
            trained_on=record | {"epoch": epoch, "calibrated_on": len(calibration)},
            metrics=metrics.to_dict(),
        ).save(out / CHECKPOINT)
        return metrics

    rows: list[dict[str, float]] = []
    devices = [torch.cuda.current_device()] if machine.device.type == "cuda" else []
    with progress_bar(console) as progress, torch.random.fork_rng(devices=devices):
        torch.manual_seed(options.seed)
        schedule = Schedule(options, len(training) // options.batch_size, progress)
        try:
            for epoch in range(1, options.epochs + 1):
                start = time.monotonic()
                loss = learner.train_epoch(training, epoch, schedule)
                schedule.say(f"epoch {epoch}/{options.epochs}, measuring")
                held_out = learner.raw_scores(testing)
                metrics = save(epoch, sample, held_out)
                seconds = time.monotonic() - start
                rows.append({"epoch": epoch, "loss": loss, **metrics.to_dict(), "seconds": round(seconds, 1)})
                files.write_whole(out / METRICS, _table(rows))
                say(
                    f"epoch {epoch}/{options.epochs}: loss {loss:.4f}, held-out SRCC {metrics.srcc:.3f}, "
                    f"PLCC {metrics.plcc:.3f}, {seconds:.0f} s" + (f" ({metrics.note})" if metrics.note else "")
                )
                if schedule.done >= 1:
                    break
            if len(sample) < len(training):
                schedule.say("calibrating")
                metrics = save(epoch, training, held_out)
        except KeyboardInterrupt:
            kept = f"{out / CHECKPOINT} is of epoch {len(rows)}" if rows else "before an epoch was complete"
            raise KeyboardInterrupt(f"training stopped: {kept}") from None
    return TrainResult(out / CHECKPOINT, split, metrics, len(rows))


class _Learner:
    """A model in training and its pictures, which are named by their indices in `loader`."""

    def __init__(self, model: Model, loader: InputLoader, options: TrainOptions, machine: Machine) -> None:
        self._model = model
        self._loader = loader
        self._options = options
        self._machine = machine
        self._optimiser = torch.optim.AdamW(
            model.trainable_parameters(), lr=options.lr, weight_decay=options.weight_decay
        )

    def train_epoch(self, indices: Sequence[int], epoch: int, schedule: Schedule) -> float:
        """Take the steps of one epoch, or fewer if the time runs out, and return their mean loss."""
        options = self._options
        order = np.random.default_rng([options.seed, epoch]).permutation(indices).tolist()
        whole = order[: len(order) // options.batch_size * options.batch_size]
        self._model.train()
        losses: list[float] = []
        start = time.monotonic()
        with closing(self._loader.batches(whole, options.batch_size, epoch)) as batches:
            for inputs, label in batches:
                for group in self._optimiser.param_groups:
                    group["lr"] = schedule.learning_rate
                raw = self._machine.raw_score(self._model, inputs)
                loss = LOSSES[options.loss](raw, label.to(self._machine.device))
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise GliaError(f"the loss is {losses[-1]} in epoch {epoch}: give an --lr under {options.lr:g}")
                self._optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimiser.step()
                schedule.step(rate=len(losses) * options.batch_size / (time.monotonic() - start))
                if schedule.done >= 1:
                    break
        return sum(losses) / len(losses)

    @torch.inference_mode()
    def raw_scores(self, indices: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the raw scores (N,) of the deterministic inputs of pictures."""
        self._model.eval()
        scores = [
            self._machine.raw_score(self._model, inputs).cpu()
            for inputs, _ in self._loader.batches(indices, self._options.batch_size, epoch=None)
        ]
        return torch.cat(scores).double().numpy()

    def calibrate(self, indices: Sequence[int]) -> tuple[float, float]:
        """Set the model's calibration, the least-squares line from raw scores to labels; returns (scale, offset).

        Raises:
            GliaError: The raw scores are all the same, or not finite.
        """
        raw = self.raw_scores(indices)
        if not raw.var() >= MIN_VARIANCE:  # the comparison is false for NaN too
            raise GliaError(
                "the model gives all training pictures one score, or none: give a lower --lr, and look at the pictures"
            )
        scale, offset = np.polyfit(raw, [self._loader.pictures[i].score for i in indices], deg=1)
        self._model.calibration.copy_(torch.tensor([scale, offset]))
        return float(scale), float(offset)


def _score_range(split: Split, declared: tuple[float, float] | None) -> tuple[float, float]:
    """Return the declared range, which must hold every label. Without one, return that of the training labels."""
    if declared is None:
        scores = [picture.score for picture in split.train]
        return min(scores), max(scores)
    low, high = declared
    if outside := [picture for picture in split.train + split.test if not low <= picture.score <= high]:
        raise UsageError(
            f"{len(outside)} scores lie outside --score-range {low:g} {high:g}, first {outside[0].score:g} of "
            f"{outside[0].name}: correct one or the other"
        )
    return low, high


def _start_folder(out: Path) -> None:
    """Make the folder, and remove the files of an earlier run, which would pass for this run's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, RECORD, SPLIT, METRICS):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot hold a run: {error.strerror}") from error


def _table(rows: Sequence[Mapping[str, float]]) -> str:
    table = io.StringIO()
    columns = ("epoch", "loss", "srcc", "krcc", "plcc", "rmse", "seconds")
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
