"""glia-rt evaluate: a model's agreement with the labels of a dataset."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from glia_rt import files
from glia_rt.cli.console import make_console, make_table, say, say_backend, show_count, tell
from glia_rt.cli.options import (
    DatasetOptions,
    EngineOptions,
    dataset_options,
    engine_options,
    grouped,
    needs,
    overwrite_option,
)
from glia_rt.cli.score import SOME_BAD
from glia_rt.errors import GliaError, OutputExistsError, UsageError

#: How many unreadable pictures are listed on the terminal.
_LISTED = 10


@dataclass(frozen=True)
class PartOptions:
    """Which part of a dataset a model is evaluated on, and how its pictures are decoded."""

    part: str
    seed: int
    workers: int | None
    backbone_weights: str | None

    def select(self, labelled: DatasetOptions) -> Any:
        """Return the pictures, a `glia_train.evaluate.Selection`; raises as `DatasetOptions.read` and `select` do."""
        with needs("train"):
            from glia_train import evaluate
        return evaluate.select(labelled.read(), self.part, self.seed)  # type: ignore[arg-type]

    def score(self, model: str, chosen: Any, engine: EngineOptions) -> Any:
        """Return the scores of a model, a `glia_train.evaluate.Scored`; raises as `score` does."""
        from glia_train import evaluate
        from glia_train.scorer import Engine

        settings = Engine(
            engine.backend,
            engine.input,
            engine.precision,
            engine.batch_size,
            engine.device,
            self.workers,
            self.backbone_weights,
        )
        with show_count("scoring", len(chosen.pictures)) as count:
            scored = evaluate.score(model, chosen, settings, on_open=say_backend, on_picture=lambda _: count())
        if scored.warning:
            say(f"warning: {scored.warning}")
        return scored


part_options = grouped(
    "of",
    PartOptions,
    click.option("--split", "part", type=click.Choice(["train", "validation", "test", "all"]), default="test",
                 show_default=True, help="The part of the dataset. Use the official test part once, at the end."),
    click.option("--seed", type=click.IntRange(min=0), default=3407, show_default=True,
                 help="Fixes the split, which must be that of the training, and the bootstrap."),
    click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default: one per core."),
    click.option("--backbone-weights", metavar="SOURCE",
                 help="The backbone's weights for a checkpoint that left them out: hub (downloads), or a file."),
)  # fmt: skip


@click.command()
@click.argument("model", type=click.Path())
@dataset_options
@part_options
@engine_options
@click.option("--predictions", type=click.Path(), metavar="FILE", help="Write the scores and labels to a .csv.")
@click.option("--report", type=click.Path(), metavar="FILE", help="Write an HTML page with plots and the worst misses.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def evaluate(
    model: str,
    labelled: DatasetOptions,
    of: PartOptions,
    engine: EngineOptions,
    predictions: str | None,
    report: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Hold a model's scores against the labels of a dataset. MODEL is a checkpoint.pt or a bundle.

    Prints SRCC, KRCC, PLCC and RMSE of the part, with 95 % bootstrap intervals. Those of its subsets and distortions
    follow; there, SRCC alone has an interval. A picture that cannot be read is left out; the exit status is then 3.
    """
    for path, suffix in ((predictions, ".csv"), (report, ".html")):
        if path is not None:
            _require_output(Path(path), suffix, overwrite=overwrite)
    if report is not None:
        with needs("report"):
            import jinja2  # noqa: F401
            import matplotlib  # noqa: F401
    chosen = of.select(labelled)
    scored = of.score(model, chosen, engine)
    from glia_train.evaluate import judge

    found = judge(chosen, scored)
    if predictions is not None:
        try:
            files.write_whole(Path(predictions), found.to_csv())
        except OSError as error:
            raise GliaError(f"{predictions}: cannot be written: {error.strerror}") from error
    if report is not None:
        from glia_train.report import write_report

        write_report(report, found)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        print_evaluation(found)
    return say_unreadable(chosen, scored)


def _require_output(path: Path, suffix: str, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before minutes of scoring."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{path}: the name must end in {suffix}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists: name another file, or give --overwrite to replace it")


def print_evaluation(found: Any) -> None:
    """Print the tables of a `glia_train.evaluate.Evaluation`."""
    console, metrics = make_console(), found.overall.metrics
    part = "all parts" if found.selection.part == "all" else f"the {found.selection.part} part"
    tell(f"{found.overall.pictures} pictures, {part} of {found.selection.dataset}")
    rows = [
        [name.upper(), _figure(getattr(metrics, name)), _interval(found.overall.intervals.get(name))]
        for name in ("srcc", "krcc", "plcc", "rmse")
    ]
    console.print(make_table(["metric", "value", "95 % interval"], rows))
    if metrics.note:
        say(metrics.note)
    if not found.overall.intervals:
        say("no intervals: there are too few groups of pictures, or every picture has the same score")
    shares = {"all": found.overall}
    if found.without_leaking is not None:
        shares["without near-duplicates of training pictures"] = found.without_leaking
    shares |= {f"subset {name}": agreement for name, agreement in found.subsets.items()}
    shares |= {f"distortion {name}": agreement for name, agreement in found.distortions.items()}
    if len(shares) > 1:
        console.print()
        cells = [_share(name, agreement) for name, agreement in shares.items()]
        console.print(make_table(["pictures", "number", "SRCC", "95 % interval", "KRCC", "PLCC", "RMSE", ""], cells))


def _share(name: str, agreement: Any) -> list[str]:
    metrics = agreement.metrics
    return [
        name,
        str(agreement.pictures),
        _figure(metrics.srcc),
        _interval(agreement.intervals.get("srcc")),
        *(_figure(value) for value in (metrics.krcc, metrics.plcc, metrics.rmse)),
        metrics.note,
    ]


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _interval(found: Any) -> str:
    return "-" if found is None else f"{found.low:.4f} to {found.high:.4f}"


def say_unreadable(chosen: Any, *models: Any) -> int:
    """List the pictures that could not be read, and return the exit status."""
    unreadable = {one.picture.name: one.error for scored in models for one in scored.unreadable}
    if not unreadable:
        return 0
    say(f"{len(unreadable)} of {len(chosen.pictures)} pictures could not be read and are left out:")
    for name, error in list(unreadable.items())[:_LISTED]:
        say(f"  {name}: {error}")
    if len(unreadable) > _LISTED:
        say(f"  and {len(unreadable) - _LISTED} more; --json lists them")
    return SOME_BAD
