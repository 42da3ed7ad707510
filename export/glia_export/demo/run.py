"""The run of the demo, the whole chain once on photographs: distort, train, export, verify, score, report."""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from glia_export.demo.data import LABELS, METRIC, DemoPicture, make_dataset
from glia_export.demo.page import DemoReport, ScoredPicture, write_report
from glia_export.export import export
from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.listing.sources import Sources
from glia_rt.results import Result
from glia_rt.runs.run import score_to_file
from glia_rt.scorer import Scorer
from glia_rt.steps import log_end
from glia_rt.verify import require, selftest
from glia_rt.versions import installed_versions
from glia_train.datasets.csv import read_labels
from glia_train.metrics import compare
from glia_train.models.glianet import ModelConfig
from glia_train.options import TrainOptions
from glia_train.run_folder import TrainResult
from glia_train.train import train

if TYPE_CHECKING:
    from rich.console import Console

#: The hybrid ViT's convolutional stem learns far faster from random weights than patches do.
MODEL: Final = ModelConfig(backbone="vit_tiny_r_s16_p8_224", tune_backbone=True)
PICTURES: Final = 1000
SEED: Final = 3407
#: Time for export, verification, scoring and the report on 2 cores, with a margin.
RESERVED_SECONDS: Final = 120.0
LEAST_MINUTES: Final = 3.0
LEAST_TRAINING_SECONDS: Final = 20.0

#: The file that marks a folder as a demo's. --overwrite may replace such a folder.
MARK: Final = ".glia-demo"
CHECKPOINT: Final = "checkpoint.pt"
BUNDLE: Final = "demo.glia"
SCORES: Final = "scores.csv"
REPORT: Final = "report.html"


def run(out: Path, *, minutes: float, overwrite: bool, console: Console) -> Path:
    """Run the demo and write everything into a folder.

    Args:
        out: The folder for the dataset (data/), the run (run/), checkpoint.pt, demo.glia, scores.csv and report.html.
        minutes: Time that the whole demo may take. Training gets the time that the rest leaves, and at least 20
            seconds.
        overwrite: Replace an earlier demo in `out`.
        console: Shows progress and results.

    Returns:
        The path of the report.

    Raises:
        UsageError: `minutes` is too low, or `out` holds files that no demo wrote.
        OutputExistsError: `out` holds an earlier demo, and `overwrite` is False.
        ParityError: The exported graphs, or the engine that runs them here, do not give PyTorch's scores.
    """
    if not (math.isfinite(minutes) and minutes >= LEAST_MINUTES):
        raise UsageError(f"--minutes must be at least {LEAST_MINUTES:g}: export and scoring take about two of them")
    began = time.monotonic()
    _make_room(out, overwrite)
    seconds: dict[str, float] = {}

    with _stage("make the data set", seconds, console):
        pictures = make_dataset(out / "data", seed=SEED, pictures=PICTURES)
    with _stage("train", seconds, console):
        spent = time.monotonic() - began
        trained = train(
            read_labels(out / "data" / LABELS),
            out / "run",
            MODEL,
            TrainOptions(
                epochs=100,
                batch_size=16,
                lr=5e-4,
                seed=SEED,
                score_range=(0.0, 1.0),
                time_limit_s=max(LEAST_TRAINING_SECONDS, 60 * minutes - spent - RESERVED_SECONDS),
            ),
            "random",
            console=console,
        )
        shutil.copyfile(trained.checkpoint, out / CHECKPOINT)
    with _stage("export", seconds, console):
        exported = export(out / CHECKPOINT, out / BUNDLE, report=lambda stage: console.print(f"  {stage}"))
    with Scorer.open(exported.path) as scorer:
        with _stage("verify", seconds, console):
            verified = selftest(scorer)
            require(verified)
        with _stage("score the held-out pictures", seconds, console):
            results = _score(scorer, trained, out / SCORES)
        backend = f"{scorer.backend.name}, {scorer.backend.precision}"
    with _stage("write the report", seconds, console):
        by_path: dict[Path | None, DemoPicture] = {picture.path: picture for picture in pictures}
        held_out = [_scored(by_path[Path(result.path)], result) for result in results]
        metrics = compare([s.score for s in held_out], [s.picture.score for s in held_out])
        versions = installed_versions("torch", "timm", "onnx", "onnxruntime", "openvino")
        report = DemoReport(
            backbone=MODEL.backbone,
            trained=[by_path[picture.path] for picture in trained.split.train],
            held_out=held_out,
            metrics=metrics,
            parity=[*exported.parity, *verified],
            seconds=seconds,
            setup={
                "Model": f"GLIANet on {MODEL.backbone}, backbone trained too, from random weights",
                "Training": f"epochs: {trained.epochs}; pictures: {len(trained.split.train)}",
                "Scored with": backend,
                "Machine": f"{platform.machine()}, {platform.system()}",
                "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
                "Command": f"glia-rt demo --minutes {minutes:g}",
            },
            files={
                CHECKPOINT: "the trained model",
                f"{BUNDLE}/": "the exported bundle: four ONNX graphs, their manifest and a selftest",
                SCORES: "a row for each held-out picture",
                "run/": "options, split and figures of every epoch",
                "data/": f"the distorted photographs and their labels ({METRIC})",
            },
            commands={
                "Score pictures of your own": f"glia-rt score {out / BUNDLE} PICTURE_OR_FOLDER",
                "Train on labels of your own": "glia-rt train --data labels.csv --out RUN --backbone-weights hub",
                "Look into the bundle": f"glia-rt info {out / BUNDLE}",
            },
        )
        write_report(out / REPORT, report)
    console.print(
        f"held-out SRCC {metrics.srcc:.3f} and PLCC {metrics.plcc:.3f} with {METRIC} after "
        f"{seconds['train'] / 60:.1f} minutes of training.\nThe backbone started from random weights, not pretrained "
        "ones: the figure shows that the chain works, not how good the method is.",
        highlight=False,
    )
    console.print(f"{time.monotonic() - began:.0f} s in all. Open {out / REPORT}", highlight=False)
    return out / REPORT


def _make_room(out: Path, overwrite: bool) -> None:
    """Remove what an earlier demo wrote, and refuse a folder that holds other files."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UsageError(f"{out} holds files that no demo wrote: give another --out")
        if not overwrite:
            raise OutputExistsError(f"{out} holds an earlier demo: give --overwrite to replace it, or another --out")
    try:
        for name in ("data", "run", CHECKPOINT, BUNDLE, SCORES, f"{SCORES}.meta.json", REPORT):
            earlier = out / name
            if earlier.is_dir() and not earlier.is_symlink():
                shutil.rmtree(earlier)
            else:
                earlier.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; give another --out") from error


def _score(scorer: Scorer, trained: TrainResult, path: Path) -> list[Result]:
    results: list[Result] = []
    sources = Sources([picture.path for picture in trained.split.test if picture.path is not None])
    score_to_file(scorer, sources, path, overwrite=True, on_row=lambda _, result: results.append(result))
    return results


def _scored(picture: DemoPicture, result: Result) -> ScoredPicture:
    if result.score is None:
        raise GliaError(f"{result.path}: {result.error}; the demo wrote this file itself: is the disk full?")
    return ScoredPicture(picture, result.score)


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    console.print(f"[bold]{name}[/bold]", highlight=False)
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began
    log_end(name, seconds[name])
