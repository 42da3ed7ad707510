"""The demo's second half: the starter is fine-tuned on distorted copies, exported, verified, and built."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from glia_engines.build import build
from glia_export.demo.data import BUNDLE, LABELS, RUN, SEED, TUNED_SCORES, Copy
from glia_export.demo.score import Scored, score_copies
from glia_export.export import export
from glia_rt.errors import MissingPackageError
from glia_rt.scorer import Scorer
from glia_rt.starter.paths import CHECKPOINT
from glia_rt.verify import Parity, require, selftest
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.base import COLUMNS
from glia_train.datasets.csv import read_labels
from glia_train.distortions import LEVELS, UNORDERED
from glia_train.options import TrainOptions
from glia_train.train import Origin, train

if TYPE_CHECKING:
    from rich.console import Console

TARGET: Final = "tensorrt-rtx"


@dataclass(frozen=True)
class Tuned:
    """What came of the fine-tuning.

    Attributes:
        trained_on: Names of the photographs whose copies were trained on.
        epochs: Passes over them. The last one may have been cut short when the time was over.
        held_out: The copies of the other photographs, scored with the exported model.
        parity: The comparisons of the export and of the selftest.
        engine: The engine that was built, and its size, in words; empty if none was.
        no_engine: Why none was built; empty if one was.
    """

    trained_on: Sequence[str]
    epochs: int
    held_out: Sequence[Scored]
    parity: Sequence[Parity]
    engine: str
    no_engine: str


def tune(copies: Sequence[Copy], out: Path, seconds: float, stage: Callable[[str], None], console: Console) -> Tuned:
    """Fine-tune the starter on copies labelled by their level, and take the result through the chain.

    The label is 100 for a photograph and 20 less for each level. A level is no opinion: it only shows that the model
    learns what it is given. Distortions whose severity does not rise with the level are left out.

    Args:
        copies: The pictures, of at least five photographs.
        out: The folder for labels.csv, run/ and demo.glia.
        seconds: Seconds that the steps of training may take.
        stage: Called with the name of each stage as it begins.
        console: Shows progress.

    Raises:
        ParityError: The exported graphs, or the engine that runs them here, do not give PyTorch's scores.
    """
    stage(f"fine-tune the starter for {seconds:.0f} s")
    usable = [copy for copy in copies if copy.distortion not in UNORDERED]
    (out / LABELS).write_text(_to_csv(usable, out), encoding="utf-8")
    # The stem stays as it is: a step then takes a third of the time, and a minute is short.
    config = dataclasses.replace(Checkpoint.load(CHECKPOINT).config, tune_backbone=False)
    options = TrainOptions(
        epochs=100, batch_size=32, lr=3e-4, score_range=(0.0, 100.0), seed=SEED, time_limit_s=seconds, cache=False
    )
    trained = train(read_labels(out / LABELS), out / RUN, config, options, Origin(None, CHECKPOINT), console=console)
    stage("export it")
    exported = export(trained.checkpoint, out / BUNDLE, report=lambda name: console.print(f"  {name}"))
    stage("verify it")
    test = {picture.path for picture in trained.split.test}
    with Scorer.open(exported.path) as scorer:
        verified = selftest(scorer)
        require(verified)
        stage("score the held-out copies with it")
        held_out = score_copies(scorer, [copy for copy in usable if copy.path in test], out / TUNED_SCORES)
    stage("build an engine for RTX GPUs")
    return Tuned(
        sorted({str(picture.reference) for picture in trained.split.train}),
        trained.epochs,
        held_out,
        [*exported.parity, *verified],
        *_engine(exported.path, out),
    )


def _engine(bundle: Path, out: Path) -> tuple[str, str]:
    """Build an engine, and return what was built and why nothing was; one of the two is empty."""
    try:
        built = build(bundle, TARGET)
    except MissingPackageError as error:
        return "", str(error)
    return f"{built.path.relative_to(out)}, {built.record.engine_size / 1e6:.1f} MB", ""


def _to_csv(copies: Sequence[Copy], folder: Path) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for copy in copies:
        label = 100 * (1 - copy.level / LEVELS)
        writer.writerow([copy.path.relative_to(folder).as_posix(), f"{label:g}", copy.photograph])
    return table.getvalue()
