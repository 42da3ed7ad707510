"""glia-rt train: labelled pictures -> checkpoint.pt."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

import click

from glia_rt.cli.console import make_console
from glia_rt.cli.options import grouped, needs, overwrite_option
from glia_rt.errors import UsageError


@dataclass(frozen=True)
class ModelOptions:
    """Which model to train."""

    family: str
    backbone: str | None
    tune_backbone: bool
    settings: tuple[str, ...]

    def config(self) -> Any:
        """Return the config of the family.

        Raises:
            UsageError: It has no such option, or not of this value.
        """
        with needs("train"):
            from glia_train.models.table import read_config
        record: dict[str, Any] = {} if self.backbone is None else {"backbone": self.backbone}
        if self.tune_backbone:
            record["tune_backbone"] = True
        for setting in self.settings:
            key, equals, value = setting.partition("=")
            group, _, name = key.partition(".")
            if group != "model" or not name or not equals:
                raise UsageError(f"--set {setting} is not model.OPTION=VALUE, as model.mlp=loda")
            if name in record:
                raise UsageError(f"--set {setting}: {name} is given twice; give it once")
            try:
                record[name] = json.loads(value)
            except (ValueError, RecursionError):
                record[name] = value  # text needs no quotes
        return read_config(self.family, record)


model_options = grouped(
    "model",
    ModelOptions,
    click.option("--family", default="glianet", show_default=True, help="The family of the model."),
    click.option("--backbone", help="The backbone, a timm ViT; default: ViT-B/16."),
    click.option("--tune-backbone", is_flag=True, help="Train the backbone too."),
    click.option("--set", "settings", multiple=True, metavar="model.OPTION=VALUE",
                 help="An option of the family's config, for example model.mlp=loda; may be given several times."),
)  # fmt: skip


@click.command()
@click.option("--data", required=True, type=click.Path(), help="The labels, a CSV of path,score[,reference].")
@click.option("--out", required=True, type=click.Path(), help="The folder of the run.")
@click.option(
    "--backbone-weights",
    required=True,
    help="Where the backbone's weights come from: hub (downloads), random, or a file.",
)
@model_options
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the pictures.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Pictures in a step.")
@click.option(
    "--lr", type=float, default=3e-4, show_default=True, help="The first learning rate; it falls along a cosine."
)
@click.option("--weight-decay", type=float, default=1e-2, show_default=True, help="The weight decay of AdamW.")
@click.option("--loss", type=click.Choice(["mse-rho", "plcc"]), default="mse-rho", show_default=True,
              help="The loss: that of LoDa's code, or (1 - correlation) / 2.")  # fmt: skip
@click.option(
    "--seed", type=int, default=3407, show_default=True, help="Fixes the split, the first weights and the order."
)
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default: one per core.")
@click.option(
    "--score-range",
    type=(float, float),
    help="Least and greatest score of the labels' scale; default: those of the labels.",
)
@click.option("--adapter-only", is_flag=True, help="Leave the frozen backbone out of the checkpoint.")
@overwrite_option
def train(data: str, out: str, backbone_weights: str, model: ModelOptions, overwrite: bool, **options: Any) -> None:
    """Train a model on pictures with scores, and hold out a fifth to measure it."""
    with needs("train"):
        from glia_train.options import TrainOptions
        from glia_train.train import train as run
    result = run(
        data,
        out,
        model.config(),
        TrainOptions(**options),
        backbone_weights,
        overwrite=overwrite,
        console=make_console(stderr=True),
    )
    command = ["glia-rt", "export", str(result.checkpoint)]
    if options["adapter_only"]:
        command += ["--backbone-weights", backbone_weights]
    click.echo(f"wrote {result.checkpoint}; next:\n  {shlex.join(command)}")
