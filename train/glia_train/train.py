"""Training on labelled pictures. A run is a folder: checkpoint.pt, run.json, split.csv, metrics.csv and curves.png."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from glia_rt.contract import Contract
from glia_rt.errors import GliaError, UsageError
from glia_rt.files import sha256
from glia_rt.machine import cpu_count
from glia_rt.starter.paths import resolve_checkpoint
from glia_rt.steps import step
from glia_rt.versions import installed_versions
from glia_train.backbones import load_backbone_weights
from glia_train.cache import FLIPS, MEMORY_SHARE, free_memory
from glia_train.checkpoint import Checkpoint, check_adapter_only, make_checkpoint
from glia_train.datasets.base import Dataset, LabelledPicture, require_pictures, require_scores
from glia_train.datasets.splits import Split, split_dataset
from glia_train.datasets.unpack import unpack
from glia_train.learner import Learner
from glia_train.loader import InputLoader, KeptPictures, open_cache
from glia_train.machine import Machine, keep_freed_memory
from glia_train.metrics import Metrics, compare
from glia_train.models.base import Model
from glia_train.models.table import untrained
from glia_train.options import MIN_BATCH, TrainOptions
from glia_train.run_folder import CHECKPOINT, RunFolder, TrainResult
from glia_train.schedule import Schedule, progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

CACHE: Final = "cache"

#: Number of training pictures that the calibration is fitted to after each epoch. Its two numbers need no more, and all
#: training pictures would cost half an epoch. The last checkpoint is calibrated on all.
CALIBRATION_SAMPLE: Final = 256
#: Seconds after which the state is written within an epoch.
SAVE_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Origin:
    """Where the first weights of a run come from.

    Attributes:
        backbone_weights: "hub", "random", "package" or a file, as for `glia_train.backbones.load_backbone_weights`.
            With a `checkpoint`, it is needed if that is adapter-only.
        checkpoint: A checkpoint to start from, or "starter" for the model that glia-rt ships; None for new weights.
    """

    backbone_weights: str | None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a run without first weights."""
        if self.backbone_weights is None and self.checkpoint is None:
            raise UsageError(
                "--backbone-weights is needed: hub (downloads), random, package (a hybrid's stem), or a file; or "
                "--from a checkpoint"
            )


def train(
    dataset: Dataset,
    out: str | os.PathLike[str],
    config: Any,
    options: TrainOptions,
    origin: Origin | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train a model on a dataset's training part, and measure it on the validation part after every epoch.

    On a CPU, the process keeps the memory that it frees from now on: see `glia_train.machine.keep_freed_memory`.

    The test part is measured once, after the last epoch. The checkpoint is always that of the last complete epoch,
    calibrated and ready to export. After each epoch it is calibrated on `CALIBRATION_SAMPLE` training pictures, and at
    the end on all training pictures.

    Args:
        dataset: The labelled pictures.
        out: The folder of the run, which is made if it does not exist.
        config: The config of a family, which fixes the architecture. With a checkpoint to start from it must be the
            checkpoint's, but for `tune_backbone`.
        options: The options of training.
        origin: Where the first weights come from; a string is `Origin(backbone_weights)`.
        overwrite: Replace the run that `out` holds.
        resume: Go on with the run that `out` holds, if it holds one. On a CPU, the weights at the end are those of a
            run that was never interrupted, to the bit.
        cache_dir: A folder for what is kept from epoch to epoch. It is not removed, and other runs on the same dataset
            and backbone use what is there. None for a folder inside `out`, which goes when the run is complete.
        console: Shows a progress bar and one line for each epoch; None for silence.

    Raises:
        OutputExistsError: `out` holds a run, and neither `overwrite` nor `resume` is given.
        UsageError: The dataset cannot be used, some options do not go together, the run to resume has other options, or
            the disk has no room for the cache.
        BundleError: The backbone's weights do not fit, or the state of the run to resume is damaged.
        BadImageError: Some pictures cannot be read. This is found before training begins.
        GliaError: The loss is not finite, or the model gives all pictures the same score.
        KeyboardInterrupt: The user pressed Ctrl-C. The message names the epoch of the checkpoint in `out`.
    """
    run = RunFolder(Path(out), console)
    run.require_room(overwrite=overwrite, resume=resume)
    job = _prepare(dataset, config, options, Origin(origin) if isinstance(origin, str) else origin)
    state = run.read_state(job.record) if resume else None
    if resume and state is None and (finished := run.finished(job.record, job.split)) is not None:
        return finished
    cache_folder = Path(cache_dir) if cache_dir is not None else run.path / CACHE
    if job.machine.device.type == "cpu":
        keep_freed_memory()
    try:
        parts = _Parts.of(job.split, options, cache_folder / "pictures")
        kept = KeptPictures(int(MEMORY_SHARE * free_memory()))
        plain = InputLoader(parts.pictures, job.contract, options.seed, job.workers, kept)
        with step(f"decode {len(parts.pictures)} pictures once"):
            plain.check(range(len(parts.pictures)))
        if state is None:
            run.start(job.record, job.split)
        run.say(job.headline)
        devices = [torch.cuda.current_device()] if job.machine.device.type == "cuda" else []
        with progress_bar(console) as progress, torch.random.fork_rng(devices=devices):
            loader = _with_cache(plain, job, parts, cache_folder, run, progress) if _cache_pays(job) else plain
            torch.manual_seed(options.seed)
            training = _Training(run, job, parts, plain, loader, progress)
            metrics = training.run(state)
        run.finish(cache_folder if cache_dir is None else None)
    except OSError as error:
        raise GliaError(
            f"{error.filename or run.path}: {error.strerror or error}; mend that, and --resume goes on"
        ) from error
    return TrainResult(run.path / CHECKPOINT, job.split, metrics, len(training.rows))


@dataclass(frozen=True)
class _Job:
    """What is to be trained on what, and what is written down about it.

    Attributes:
        contract: The model's contract, with the score range.
        sources: The source of each backbone's weights.
        record: All that decides the weights, as JSON types, for `run.json` and the checkpoint.
    """

    model: Model
    contract: Contract
    sources: str | Mapping[str, str]
    split: Split
    options: TrainOptions
    machine: Machine
    workers: int
    record: dict[str, Any]

    @property
    def headline(self) -> str:
        """Return the first line that a run prints."""
        split = self.split
        test = f"{len(split.test)} to test with" if self.options.measure_test else f"{len(split.test)} left alone"
        by = "by the official split" if split.by == "official" else f"split by {split.by}"
        validation = f"{len(split.validation)} to validate with"
        if self.options.train_on_validation:
            validation = f"{len(split.validation)} more that were to validate with"
        parameters = sum(parameter.numel() for parameter in self.model.trainable_parameters())
        return (
            f"{len(split.train)} pictures to train on, {validation}, {test}, {by}; "
            f"{self.machine.name}, {self.machine.precision}; {parameters:,} trainable parameters"
        )


def _prepare(dataset: Dataset, config: Any, options: TrainOptions, origin: Origin) -> _Job:
    """Return what is to be done, with the model on its device; errors as for `train`."""
    require_pictures(dataset)
    split = split_dataset(dataset, options.seed)
    crops = options.crops * len(split.train)
    if crops < options.batch_size:
        if crops < MIN_BATCH:
            raise UsageError(f"{crops} training pictures are too few: a batch has at least {MIN_BATCH}")
        raise UsageError(
            f"{len(split.train)} training pictures do not fill one batch of {options.batch_size}: give --batch-size "
            f"{max(MIN_BATCH, 2 ** int(math.log2(crops)))} or, for more steps an epoch, less"
        )
    score_range = _score_range(dataset, split, options.score_range)
    if options.scale is not None:
        split, score_range = split.rescaled(score_range, options.scale), options.scale
    machine, workers = Machine.here(options.precision), options.workers or cpu_count()
    with step(f"make the model, its backbone from {origin.checkpoint or origin.backbone_weights}"):
        model, contract, sources = _first_model(config, origin, options)
    if options.fit_head and model.ridge_head is None:
        raise UsageError(f"--fit-head: this {model.family} has no head that can be fitted: drop it")
    if options.backbone_lr is not None and len(model.frozen_backbones()) == len(model.backbones()):
        raise UsageError("--backbone-lr is for a backbone that is trained: give --tune-backbone, or drop it")
    model.to(machine.device)
    record = {
        "labels": dataset.name,
        "labels_sha256": dataset.labels_sha256,
        "pictures": _counts(split, options) | {"split_by": split.by},
        "backbone_weights": sources,
        "from": None if origin.checkpoint is None else sha256(resolve_checkpoint(origin.checkpoint)),
        "family": model.family,
        "config": dataclasses.asdict(config),
        "options": dataclasses.asdict(options),
        "score_range": list(score_range),
        "machine": {"device": machine.name, "precision": machine.precision, "workers": workers},
        "versions": installed_versions("torch", "timm", "numpy"),
    }
    return _Job(model, contract.with_range(*score_range), sources, split, options, machine, workers, record)


@dataclass(frozen=True)
class _Parts:
    """The pictures that a run reads, one part after the other, and the indices of each part.

    Attributes:
        pictures: The pictures, all of them files. Those of the test part are there only if it is measured.
        training: Indices of those to train on.
        validation: Indices of those to measure after every epoch. They may be in `training`, too.
        testing: Indices of those to measure at the end; none if the test part is left alone.
        calibration: Some training pictures, to which the calibration is fitted after each epoch.
    """

    pictures: tuple[LabelledPicture, ...]
    training: range
    validation: range
    testing: range
    calibration: Sequence[int]

    @classmethod
    def of(cls, split: Split, options: TrainOptions, folder: Path) -> _Parts:
        """Return the parts of a split. Pictures in archives are written to `folder`."""
        train, validation = len(split.train), len(split.train) + len(split.validation)
        pictures = unpack(split.train + split.validation + (split.test if options.measure_test else ()), folder)
        training = range(validation if options.train_on_validation else train)
        sample = np.random.default_rng(options.seed).permutation(training)[:CALIBRATION_SAMPLE].tolist()
        return cls(pictures, training, range(train, validation), range(validation, len(pictures)), sample)


class _Training:
    """The epochs of a run, and what is written after each.

    Attributes:
        rows: The figures of every epoch so far.
    """

    def __init__(
        self, run: RunFolder, job: _Job, parts: _Parts, plain: InputLoader, loader: InputLoader, progress: Progress
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._run = run
        self._job = job
        self._parts = parts
        self._plain = plain
        self._loader = loader
        self._learner = Learner(job.model, loader, job.options, job.machine)
        steps = job.options.crops * len(parts.training) // job.options.batch_size
        self._schedule = Schedule(job.options, steps, progress)

    def run(self, state: Mapping[str, Any] | None) -> Metrics:
        """Train from the beginning, or from a state, and return the last metrics."""
        options, parts, first = self._job.options, self._parts, 1
        if state is None:
            if options.fit_head and (head := self._job.model.ridge_head) is not None:
                whole = len(parts.training)
                self._run.say(f"fitting the head to {whole} pictures by ridge regression")
                alpha = self._learner.fit_head(
                    head, parts.training, lambda read: self._schedule.say(f"fitting the head, picture {read}/{whole}")
                )
                self._run.say(f"the head is fitted, alpha {alpha:.0f}")
            self._keep(first)  # from now on, a run without a state is a complete one
        else:
            first = self._restore(state)
        try:
            for epoch in range(first, options.epochs + 1):
                if self.rows and self._schedule.done >= 1:  # the time was over when the run was interrupted
                    break
                self._epoch(epoch)
                if self._schedule.done >= 1:
                    break
            self._schedule.say("calibrating")
            self._run.say(f"calibrating on all {len(parts.training)} training pictures")
            measured, loader = (parts.testing, self._plain) if parts.testing else (parts.validation, self._loader)
            metrics = self._measure(len(self.rows), parts.training, measured, loader, last=True)
        except KeyboardInterrupt:
            kept = f"{self._run.path / CHECKPOINT} is of epoch {len(self.rows)}"
            if not self.rows:
                kept = "before an epoch was complete"
            raise KeyboardInterrupt(f"training stopped: {kept}; --resume goes on with it") from None
        if parts.testing:
            self._run.say(f"test part: {_figures(metrics)}")
        return metrics

    def _epoch(self, epoch: int) -> None:
        """Train for an epoch, measure the validation part, and write checkpoint, figures and state."""
        options, learner, schedule = self._job.options, self._learner, self._schedule
        start = kept = time.monotonic()
        for _ in learner.train_epoch(self._parts.training, epoch, schedule):
            if time.monotonic() - kept > SAVE_SECONDS:
                self._keep(epoch)
                self._run.say(
                    f"epoch {epoch}/{options.epochs}, step {len(learner.losses)}: loss {learner.losses[-1]:.4f}"
                )
                kept = time.monotonic()
        schedule.say(f"epoch {epoch}/{options.epochs}, measuring")
        metrics = self._measure(epoch, self._parts.calibration, self._parts.validation, self._loader)
        self.rows.append(
            {
                "epoch": epoch,
                "loss": sum(learner.losses) / len(learner.losses),
                "lr": schedule.learning_rate,
                "crops_per_s": round(len(learner.losses) * options.batch_size / learner.seconds, 2),
                "waiting": round(learner.waited / learner.seconds, 4),
                **metrics.to_dict(),
                "mapping": metrics.mapping,
                "seconds": round(time.monotonic() - start, 1),
            }
        )
        self._run.write_rows(self.rows)
        self._run.say(_line(self.rows[-1], options.epochs, self._measured_on(self._parts.validation), metrics))
        learner.next_epoch()
        self._keep(epoch + 1)

    def _measure(
        self, epoch: int, calibration: Sequence[int], measured: range, loader: InputLoader, *, last: bool = False
    ) -> Metrics:
        """Calibrate on the given training pictures, measure others, and write the checkpoint."""
        job, pictures = self._job, self._parts.pictures
        with self._learner.averaged():
            if last and job.options.half_weights:
                self._learner.round_weights()
            scale, offset = self._learner.calibrate(calibration)
            raw = self._learner.raw_scores(measured, loader)
            metrics = compare(scale * raw + offset, [pictures[i].score for i in measured])
            facts = {
                "epoch": epoch,
                "calibrated_on": len(calibration),
                "measured_on": self._measured_on(measured),
                "mapping": metrics.mapping,
                "note": metrics.note,
            }
            checkpoint = make_checkpoint(
                job.model,
                job.contract,
                job.sources,
                adapter_only=job.options.adapter_only,
                trained_on=job.record | facts,
                # How well a model does on what it was trained on is no figure of merit.
                metrics={} if self._measured_on(measured) == "training" else metrics.to_dict(),
            )
            checkpoint.save(self._run.path / CHECKPOINT)
        return metrics

    def _measured_on(self, measured: range) -> str:
        """Return what figures are of: "validation", "test", or "training" if the validation part is trained on."""
        if measured != self._parts.validation:
            return "test"
        return "training" if self._job.options.train_on_validation else "validation"

    def _keep(self, epoch: int) -> None:
        """Write all that is needed to go on in this epoch."""
        schedule = self._schedule
        facts = {"epoch": epoch, "rows": self.rows, "steps": schedule.steps, "seconds": schedule.seconds}
        self._run.write_state({**facts, "learner": self._learner.state(), "record": self._job.record})

    def _restore(self, state: Mapping[str, Any]) -> int:
        """Go back to what `_keep` wrote, and return the epoch to go on in."""
        self._learner.restore(state["learner"])
        self._schedule.resume(state["steps"], state["seconds"])
        self.rows = state["rows"]
        epoch, epochs = int(state["epoch"]), self._job.options.epochs
        self._run.say(f"resumed in epoch {min(epoch, epochs)}/{epochs}, after {self._schedule.steps} steps")
        return epoch


def _first_model(config: Any, origin: Origin, options: TrainOptions) -> tuple[Model, Contract, str | Mapping[str, str]]:
    """Return the model that training starts with, its contract, and the source of each backbone's weights."""
    if origin.checkpoint is None:
        weights = str(origin.backbone_weights)
        model, contract = untrained(config, seed=options.seed)
        if options.adapter_only:  # before anything is downloaded
            check_adapter_only(model, weights)
        for backbone in model.backbones().values():
            load_backbone_weights(backbone, weights)
        return model, contract, weights if weights in ("hub", "random") else Path(weights).name
    checkpoint = Checkpoint.load(origin.checkpoint)
    if options.adapter_only and getattr(checkpoint.config, "tune_backbone", False):
        raise UsageError(f"--adapter-only cannot leave out the tuned backbone of {origin.checkpoint}: drop it")
    started = checkpoint.build_model(origin.backbone_weights)
    tuned = {"tune_backbone": config.tune_backbone} if hasattr(config, "tune_backbone") else {}
    if type(config) is not type(checkpoint.config) or dataclasses.replace(checkpoint.config, **tuned) != config:
        raise UsageError(f"{origin.checkpoint} is another model than the options say: drop them")
    model = checkpoint.family(config)
    model.load_state_dict(started.state_dict())
    model.mean.copy_(started.mean)
    model.std.copy_(started.std)
    sources = {name: facts["source"] for name, facts in checkpoint.backbones.items()}
    if options.adapter_only:
        check_adapter_only(model, sources)
    return model.eval(), checkpoint.contract, sources


def _counts(split: Split, options: TrainOptions) -> dict[str, Any]:
    """Return the number of pictures of each part, as the run uses them."""
    counts = {str(part): len(pictures) for part, pictures in split.parts.items()}
    if options.train_on_validation:
        counts = {"train": counts["train"] + counts["validation"], "validation": 0, "test": counts["test"]}
    return counts


def _score_range(dataset: Dataset, split: Split, declared: tuple[float, float] | None) -> tuple[float, float]:
    """Return the declared range, which must hold every label; else the dataset's, else that of the training labels."""
    if declared is None:
        scores = [picture.score for picture in split.train]
        return dataset.score_range or (min(scores), max(scores))
    require_scores(f"--score-range: {dataset.name}", dataset.pictures, declared)
    return declared


def _cache_pays(job: _Job) -> bool:
    """Return whether the frozen part would run more often without the cache than to fill it."""
    options = job.options
    if not options.cache or options.ranking or job.model.precomputed_input() is None:
        return False
    return options.epochs * options.crops > len(FLIPS)


def _with_cache(
    plain: InputLoader, job: _Job, parts: _Parts, folder: Path, run: RunFolder, progress: Progress
) -> InputLoader:
    """Return a loader of the training and validation parts with a full cache."""
    pictures = parts.pictures[: parts.validation.stop]
    loader = dataclasses.replace(plain, pictures=pictures)
    model, machine = job.model.eval(), job.machine
    cache = open_cache(loader, model, machine, folder, flipped=len(parts.training))
    if cache.missing:
        run.say(f"keeping what the frozen backbone makes of the pictures, {cache.nbytes / 1e9:.1f} GB on disk")
        task = progress.add_task("caching the frozen backbone", total=cache.missing, rate="")
        view = functools.partial(loader.flipped, name=cache.input)
        try:
            cache.fill(model, machine, view, loader.workers, lambda made: progress.update(task, advance=made))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"training stopped while the cache was filled: {folder} keeps it, and --resume goes on with it"
            ) from None
        progress.remove_task(task)
    return dataclasses.replace(loader, cache=cache)


def _line(row: Mapping[str, float], epochs: int, measured_on: str, metrics: Metrics) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}, {measured_on} {_figures(metrics)}, "
        f"{row['crops_per_s']:.1f} crops/s, {row['seconds']:.0f} s"
    )


def _figures(metrics: Metrics) -> str:
    return f"SRCC {metrics.srcc:.3f}, PLCC {metrics.plcc:.3f}" + (f" ({metrics.note})" if metrics.note else "")
