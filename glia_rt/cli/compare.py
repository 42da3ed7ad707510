"""glia-rt compare: the difference of two models' SRCC on the same pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import click

from glia_rt.backends.choose import AUTO
from glia_rt.cli.console import make_console, make_table, say
from glia_rt.cli.evaluate import PartOptions, part_options, say_unreadable
from glia_rt.cli.options import DatasetOptions, EngineOptions, dataset_options, engine_options
from glia_rt.starter.paths import is_bundle


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@dataset_options
@part_options
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(a: str, b: str, labelled: DatasetOptions, of: PartOptions, engine: EngineOptions, as_json: bool) -> int:
    """Compare the SRCC of two models on the same pictures. A and B are checkpoints or bundles.

    Prints the difference with its 95 % interval, by a paired bootstrap. A difference whose interval excludes 0 is more
    than the luck of these pictures. A picture that cannot be read is left out; the exit status is then 3.

    Of a checkpoint and a bundle, the checkpoint is scored by PyTorch, and --backend, --input, --precision and --device
    are for the bundle.
    """
    chosen = of.select(labelled)
    scored = []
    for model, other in ((a, b), (b, a)):
        own, own_engine = _suited(of, engine, model, other)
        scored.append(own.score(model, chosen, own_engine))
    first, second = scored
    from glia_train.evaluate import difference

    found = difference(chosen, first, second)
    interval = found.interval
    if as_json:
        record: dict[str, Any] = {
            "dataset": chosen.dataset,
            "split": chosen.part,
            "seed": chosen.seed,
            "pictures": found.pictures,
            "a": {"model": first.model, "srcc": _defined(found.first), "scored_with": first.engine},
            "b": {"model": second.model, "srcc": _defined(found.second), "scored_with": second.engine},
            "difference": _defined(found.value),
            "interval": None if interval is None else [interval.low, interval.high],
            "excludes_zero": None if interval is None else interval.excludes_zero,
        }
        click.echo(json.dumps(record, indent=2, allow_nan=False))
    else:
        shown = "" if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"
        rows = [
            [f"A {first.model}", f"{found.first:.4f}", ""],
            [f"B {second.model}", f"{found.second:.4f}", ""],
            ["A - B", f"{found.value:+.4f}", shown],
        ]
        console = make_console()
        console.print(make_table([f"{found.pictures} pictures", "SRCC", "95 % interval"], rows))
        if interval is not None:
            verdict = "excludes 0: the models differ" if interval.excludes_zero else "holds 0: either may be better"
            console.print(f"the interval {verdict}", highlight=False, markup=False)
    if interval is None:
        say("no interval: there are too few groups of pictures, or every picture has the same score")
    return say_unreadable(chosen, first, second)


def _suited(of: PartOptions, engine: EngineOptions, model: str, other: str) -> tuple[PartOptions, EngineOptions]:
    """Return the options for one of two models: without those of the other, if one is a bundle and one is not."""
    if is_bundle(model) == is_bundle(other):
        return of, engine
    if is_bundle(model):
        return replace(of, backbone_weights=None), engine
    return of, EngineOptions(AUTO, None, "views", None, engine.batch_size)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
