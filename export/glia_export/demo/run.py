"""The run of the demo: the starter's scores of photographs and distorted copies, and then the whole chain once."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from glia_export.demo.data import (
    BUNDLE,
    LABELS,
    PHOTOGRAPHS,
    PICTURES,
    RUN,
    SCORES,
    TUNED_SCORES,
    Copy,
    make_copies,
)
from glia_export.demo.score import Scored, score_copies
from glia_rt.errors import OutputExistsError, UsageError
from glia_rt.pixels.names import printable
from glia_rt.runs.outputs import listing_path, metadata_path
from glia_rt.scorer import Scorer
from glia_rt.starter.paths import BUNDLE as STARTER_BUNDLE
from glia_rt.starter.paths import STARTER
from glia_rt.steps import Stages
from glia_rt.versions import installed_versions
from glia_train.distortions import DISTORTIONS

if TYPE_CHECKING:
    from rich.console import Console

#: The distortions that copies are made with.
DISTORTED: Final = tuple(DISTORTIONS)
#: What only the second half imports.
NEEDED: Final = ("torch", "timm", "onnx", "onnxruntime", "jinja2", "matplotlib")
#: Seconds of training.
TUNING_SECONDS: Final = 60.0

#: The file that marks a folder as a demo's. --overwrite may replace what a demo wrote there.
MARK: Final = ".glia-demo"
REPORT: Final = "report.html"
WRITTEN: Final = (
    *(PICTURES, SCORES, LABELS, RUN, BUNDLE, TUNED_SCORES, REPORT),
    *(beside(Path(scores)).name for scores in (SCORES, TUNED_SCORES) for beside in (metadata_path, listing_path)),
)


def run(out: Path, *, overwrite: bool, console: Console) -> Path:
    """Run the demo and write everything into a folder.

    Args:
        out: The folder for the pictures, scores.csv, labels.csv, the run (run/), demo.glia, scores-tuned.csv and
            report.html.
        overwrite: Replace an earlier demo in `out`.
        console: Shows progress and results.

    Returns:
        The path of the report.

    Raises:
        UsageError: `out` holds files that no demo wrote.
        OutputExistsError: `out` holds an earlier demo, and `overwrite` is False.
        ModuleNotFoundError: A package of the second half is not installed.
        ParityError: The exported graphs, or the engine that runs them here, do not give PyTorch's scores.
    """
    for package in NEEDED:  # now, and not after the first half
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    _make_room(out, overwrite)
    stages = Stages(lambda name: console.print(f"[bold]{name}[/bold]", highlight=False))
    copies, scored, scored_with = score_with_starter(out, stages)
    # What follows needs torch, which the starter does not.
    from glia_export.demo.page import DemoReport, write_report
    from glia_export.demo.tune import tune

    tuned = tune(copies, out, TUNING_SECONDS, stages, console)
    stages("write the report")
    versions = installed_versions("torch", "timm", "onnx", "onnxruntime", "openvino")
    report = DemoReport(
        scored=scored,
        tuned=tuned,
        seconds=stages.seconds,
        setup={
            "Scored with": scored_with,
            "Fine-tuned": f"the starter, its stem as it was, for {TUNING_SECONDS:.0f} s: "
            + ("1 pass, or a part of one" if tuned.epochs == 1 else f"{tuned.epochs} passes"),
            "Engine": f"{tuned.engine}, for tensorrt-rtx" if tuned.engine else f"none: {tuned.no_engine}",
            "Machine": f"{platform.machine()}, {platform.system()}",
            "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        },
        files={
            f"{PICTURES}/": "the photographs and their distorted copies",
            SCORES: "the starter's score of each of them",
            LABELS: "the labels of the fine-tuning",
            f"{RUN}/": "the fine-tuning: checkpoint, options, split and figures of every epoch",
            f"{BUNDLE}/": "the fine-tuned model: four ONNX graphs, their manifest, a selftest"
            + (", and the engine" if tuned.engine else ""),
            TUNED_SCORES: "its score of each held-out copy",
        },
        commands={
            "Score pictures of your own": f"glia-rt score {STARTER} PICTURE_OR_FOLDER",
            "Fine-tune on labels of your own": f"glia-rt train --data labels.csv --out RUN --from {STARTER}",
            "Look into the bundle": f"glia-rt info {out / BUNDLE}",
        },
    )
    write_report(out / REPORT, report)
    stages.done()
    last = printable(f"{sum(stages.seconds.values()):.0f} s in all. Open {out / REPORT}")
    console.print(last, highlight=False, markup=False)
    return out / REPORT


def score_with_starter(out: Path, stages: Stages) -> tuple[list[Copy], list[Scored], str]:
    """Make the pictures and score them with the starter, without torch.

    Returns:
        The pictures, the scores, and how they were made, in words.
    """
    stages("distort photographs")
    copies = make_copies(out / PICTURES, PHOTOGRAPHS, DISTORTED)
    stages(f"score {len(copies)} pictures with the starter")
    with Scorer.open(STARTER_BUNDLE) as scorer:  # by its path: the demo's own folder may be called starter
        scored = score_copies(scorer, copies, out / SCORES)
        return copies, scored, f"{scorer.backend.name}, {scorer.backend.precision}"


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
        for name in WRITTEN:
            earlier = out / name
            if earlier.is_dir() and not earlier.is_symlink():
                shutil.rmtree(earlier)
            else:
                earlier.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; give another --out") from error
