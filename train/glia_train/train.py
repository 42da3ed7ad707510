"""Training on labelled pictures. A run is a folder: checkpoint.pt, run.json, split.csv, metrics.csv and curves.png."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from glia_rt.contract import Contract
from glia_rt.cores import cpu_count
from glia_rt.errors import UsageError
from glia_rt.files import sha256
from glia_rt.steps import step
from glia_rt.versions import installed_versions
from glia_train.backbones import backbone_sha256, load_backbone_weights
from glia_train.cache import FLIPS, MEMORY_SHARE, FrozenCache, free_memory
from glia_train.checkpoint import Checkpoint, check_adapter_only, make_checkpoint
from glia_train.datasets.base import Dataset, require_pictures, require_scores
from glia_train.datasets.splits import Split, split_dataset
from glia_train.datasets.unpack import unpack
from glia_train.learner import Learner
from glia_train.loader import InputLoader
from glia_train.machine import Machine
from glia_train.metrics import Metrics, compare
from glia_train.models.base import Model
from glia_train.models.table import untrained
from glia_train.options import TrainOptions
from glia_train.run_folder import CHECKPOINT, RunFolder, TrainResult
from glia_train.schedule import Schedule, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

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
        backbone_weights: "hub", "random" or a file, as for `glia_train.backbones.load_backbone_weights`. With a
            `checkpoint`, it is needed if that is adapter-only.
        checkpoint: A checkpoint to start from; None for new weights.
    """

    backbone_weights: str | None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a run without first weights."""
        if self.backbone_weights is None and self.checkpoint is None:
            raise UsageError("--backbone-weights is needed: hub (downloads), random, or a file; or --from a checkpoint")


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
    origin = Origin(origin) if isinstance(origin, str) else origin
    require_pictures(dataset)
    split = split_dataset(dataset, options.seed)
    if options.crops * len(split.train) < options.batch_size:
        fitting = 2 ** int(math.log2(options.crops * len(split.train)))
        raise UsageError(
            f"{len(split.train)} training pictures do not fill one batch of {options.batch_size}: give --batch-size "
            f"{fitting} or, for more steps an epoch, less"
        )
    score_range = _score_range(dataset, split, options.score_range)
    machine, workers = Machine.here(options.precision), options.workers or cpu_count()
    with step(f"make the model, its backbone from {origin.checkpoint or origin.backbone_weights}"):
        model, contract, sources = _first_model(config, origin, options)
    record = {
        "labels": dataset.name,
        "labels_sha256": _digest(dataset),
        "pictures": {part: len(pictures) for part, pictures in split.parts.items()} | {"split_by": split.by},
        "backbone_weights": sources,
        "from": None if origin.checkpoint is None else sha256(origin.checkpoint),
        "family": model.family,
        "config": dataclasses.asdict(config),
        "options": dataclasses.asdict(options),
        "score_range": list(score_range),
        "machine": {"device": machine.name, "precision": machine.precision, "workers": workers},
        "versions": installed_versions("torch", "timm", "numpy"),
    }
    state = run.read_state(record) if resume else None
    if resume and state is None and (finished := run.finished(record, split)) is not None:
        return finished

    cache_folder = Path(cache_dir) if cache_dir is not None else run.path / CACHE
    dataset = unpack(dataset, cache_folder / "pictures")
    split = split_dataset(dataset, options.seed)
    pictures = split.train + split.validation + split.test
    training = range(len(split.train))
    validation = range(len(training), len(training) + len(split.validation))
    testing = range(validation.stop, len(pictures) if options.measure_test else validation.stop)
    contract = contract.with_range(*score_range)
    plain = InputLoader(pictures, contract, options.seed, workers, keep_bytes=int(MEMORY_SHARE * free_memory()))
    with step(f"decode {testing.stop} pictures once"):
        plain.check(range(testing.stop))
    model.to(machine.device)
    if state is None:
        run.start(record, split)

    parameters = sum(parameter.numel() for parameter in model.trainable_parameters())
    run.say(
        f"{len(training)} pictures to train on, {len(validation)} to validate with, {len(split.test)} to test with, "
        f"split by {split.by}; {machine.name}, {machine.precision}; {parameters:,} trainable parameters"
    )
    sample = np.random.default_rng(options.seed).permutation(len(training))[:CALIBRATION_SAMPLE].tolist()
    devices = [torch.cuda.current_device()] if machine.device.type == "cuda" else []
    with progress_bar(console) as progress, torch.random.fork_rng(devices=devices):
        loader = plain
        if _cache_pays(model, options):
            cache = _open_cache(model, plain, cache_folder, record, len(training), validation.stop)
            _fill_cache(cache, model, plain, machine, run, progress)
            loader = dataclasses.replace(plain, cache=cache)
        torch.manual_seed(options.seed)
        learner = Learner(model, loader, options, machine)
        schedule = Schedule(options, options.crops * len(training) // options.batch_size, progress)

        def save(epoch: int, calibration: Sequence[int], measured: range, measured_by: InputLoader) -> Metrics:
            """Calibrate on the given training pictures, measure others and write the checkpoint."""
            with learner.averaged():
                scale, offset = learner.calibrate(calibration)
                raw = learner.raw_scores(measured, measured_by)
                metrics = compare(scale * raw + offset, [pictures[i].score for i in measured])
                facts = {
                    "epoch": epoch,
                    "calibrated_on": len(calibration),
                    "measured_on": "validation" if measured == validation else "test",
                }
                make_checkpoint(
                    model,
                    contract,
                    sources,
                    adapter_only=options.adapter_only,
                    trained_on=record | facts,
                    metrics=metrics.to_dict(),
                ).save(run.path / CHECKPOINT)
            return metrics

        rows: list[dict[str, float]] = []
        first = 1
        if state is not None:
            learner.restore(state["learner"])
            rows, first = state["rows"], state["epoch"]
            schedule.resume(state["steps"], state["seconds"])
            run.say(f"resumed in epoch {min(first, options.epochs)}/{options.epochs}, after {schedule.steps} steps")

        def keep(epoch: int) -> None:
            """Write all that is needed to go on in this epoch."""
            facts = {"epoch": epoch, "rows": rows, "steps": schedule.steps, "seconds": schedule.seconds}
            run.write_state({**facts, "learner": learner.state(), "record": record})

        if state is None:
            keep(first)  # from now on, a run without a state is a complete one
        try:
            for epoch in range(first, options.epochs + 1):
                if rows and schedule.done >= 1:  # the time was over when the run was interrupted
                    break
                start = kept = time.monotonic()
                for _ in learner.train_epoch(training, epoch, schedule):
                    if time.monotonic() - kept > SAVE_SECONDS:
                        keep(epoch)
                        kept = time.monotonic()
                schedule.say(f"epoch {epoch}/{options.epochs}, measuring")
                metrics = save(epoch, sample, validation, loader)
                rows.append(
                    {
                        "epoch": epoch,
                        "loss": sum(learner.losses) / len(learner.losses),
                        "lr": schedule.learning_rate,
                        "pictures_per_s": round(len(learner.losses) * options.batch_size / learner.seconds, 2),
                        "waiting": round(learner.waited / learner.seconds, 4),
                        **metrics.to_dict(),
                        "seconds": round(time.monotonic() - start, 1),
                    }
                )
                run.write_rows(rows)
                run.say(_line(rows[-1], options.epochs, metrics))
                learner.next_epoch()
                keep(epoch + 1)
                if schedule.done >= 1:
                    break
            schedule.say("calibrating")
            metrics = save(len(rows), training, testing or validation, plain if testing else loader)
        except KeyboardInterrupt:
            kept_epoch = f"{run.path / CHECKPOINT} is of epoch {len(rows)}" if rows else "before an epoch was complete"
            raise KeyboardInterrupt(f"training stopped: {kept_epoch}; --resume goes on with it") from None
    if testing:
        run.say(f"test part: {_figures(metrics)}")
    run.finish(cache_folder if cache_dir is None else None)
    return TrainResult(run.path / CHECKPOINT, split, metrics, len(rows))


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


def _score_range(dataset: Dataset, split: Split, declared: tuple[float, float] | None) -> tuple[float, float]:
    """Return the declared range, which must hold every label; else the dataset's, else that of the training labels."""
    if declared is None:
        scores = [picture.score for picture in split.train]
        return dataset.score_range or (min(scores), max(scores))
    require_scores(f"--score-range: {dataset.name}", dataset.pictures, declared)
    return declared


def _digest(dataset: Dataset) -> str:
    """Return a hash of the labels: names, scores, and what keeps pictures together."""
    rows = sorted((p.name, p.score, p.kept_together, p.part) for p in dataset.pictures)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _cache_pays(model: Model, options: TrainOptions) -> bool:
    """Return whether the frozen part would run more often without the cache than to fill it."""
    return options.cache and model.precomputed_input() is not None and options.epochs * options.crops > len(FLIPS)


def _open_cache(
    model: Model, loader: InputLoader, folder: Path, record: Mapping[str, Any], flipped: int, pictures: int
) -> FrozenCache:
    name = str(model.precomputed_input())
    view = torch.tensor(loader.flipped(0, FLIPS[0], name)).unsqueeze(0)
    device = next(model.parameters()).device
    with torch.inference_mode():
        shape = model.precompute(view.to(device)).shape[1:]
    order = hashlib.sha256(json.dumps([picture.name for picture in loader.pictures[:pictures]]).encode()).hexdigest()
    facts = {
        "labels": record["labels_sha256"],
        "order": order,
        "contract": loader.contract.to_dict()["inputs"],
        "backbones": {name: backbone_sha256(backbone) for name, backbone in model.frozen_backbones().items()},
        "pixels": [model.mean.tolist(), model.std.tolist()],
        "precision": record["machine"]["precision"],
        "device": record["machine"]["device"],
    }
    return FrozenCache(folder, facts, name, shape, pictures, flipped=flipped)


def _fill_cache(
    cache: FrozenCache, model: Model, loader: InputLoader, machine: Machine, run: RunFolder, progress: Any
) -> None:
    if not cache.missing:
        return
    run.say(f"keeping what the frozen backbone makes of the pictures, {cache.nbytes / 1e9:.1f} GB on disk")
    task = progress.add_task("caching the frozen backbone", total=cache.missing, rate="")
    made: Callable[[int], None] = lambda count: progress.update(task, advance=count)  # noqa: E731
    model.eval()
    cache.fill(model, machine, lambda picture, flips: loader.flipped(picture, flips, cache.input), loader.workers, made)
    progress.remove_task(task)


def _line(row: Mapping[str, float], epochs: int, metrics: Metrics) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}, validation {_figures(metrics)}, "
        f"{row['pictures_per_s']:.1f} pictures/s, {row['seconds']:.0f} s"
    )


def _figures(metrics: Metrics) -> str:
    return f"SRCC {metrics.srcc:.3f}, PLCC {metrics.plcc:.3f}" + (f" ({metrics.note})" if metrics.note else "")
