"""glia-rt train: labelled pictures -> checkpoint.pt."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from glia_rt.cli.console import make_console, tell
from glia_rt.cli.options import DatasetOptions, dataset_options, grouped, needs, overwrite_option
from glia_rt.errors import UsageError

#: Where the options of a recipe's model are kept while the command line is read.
_RECIPE_MODEL: Final = "glia_rt.cli.train.model"
_DEFAULT_FAMILY: Final = "glianet"


@dataclass(frozen=True)
class ModelOptions:
    """Which model to train."""

    family: str | None
    backbone: str | None
    tune_backbone: bool
    settings: tuple[str, ...]
    checkpoint: str | None = None

    def config(self) -> Any:
        """Return the config of the family, or of the checkpoint to start from.

        Raises:
            UsageError: It has no such option, or not of this value.
        """
        with needs("train"):
            from glia_train.checkpoint import Checkpoint
            from glia_train.models.table import read_config
        given: dict[str, Any] = {} if self.backbone is None else {"backbone": self.backbone}
        if self.tune_backbone:
            given["tune_backbone"] = True
        for setting in self.settings:
            key, equals, value = setting.partition("=")
            group, _, name = key.partition(".")
            if group != "model" or not name or not equals:
                raise UsageError(f"--set {setting} is not model.OPTION=VALUE, as model.mlp=loda")
            if name in given:
                raise UsageError(f"--set {setting}: {name} is given twice; give it once")
            try:
                given[name] = json.loads(value)
            except (ValueError, RecursionError):
                given[name] = value  # text needs no quotes
        context = click.get_current_context(silent=True)
        recipe: dict[str, Any] = {} if context is None else context.meta.get(_RECIPE_MODEL, {})
        if self.checkpoint is None:
            return read_config(self.family or _DEFAULT_FAMILY, recipe | given)
        if self.family is not None or (recipe | given).keys() - {"tune_backbone"}:
            raise UsageError("--from brings its model: drop --family, --backbone and the model's options")
        config = Checkpoint.load(self.checkpoint).config
        return dataclasses.replace(config, **(recipe | given))


model_options = grouped(
    "model",
    ModelOptions,
    click.option("--family", help=f"The family of the model; default: {_DEFAULT_FAMILY}."),
    click.option("--backbone", help="The backbone, a timm ViT or a hybrid of docs/training.md; default: ViT-B/16."),
    click.option("--tune-backbone", is_flag=True, help="Train the backbone too."),
    click.option("--set", "settings", multiple=True, metavar="model.OPTION=VALUE",
                 help="An option of the family's config, for example model.mlp=loda; may be given several times."),
    click.option("--from", "checkpoint", type=click.Path(), metavar="CHECKPOINT",
                 help="Start from the weights of a checkpoint, or of starter, instead of new ones."),
)  # fmt: skip


def _read_recipe(context: click.Context, _: click.Parameter, recipe: str | None) -> None:
    """Make the options of a recipe the defaults of the command."""
    if recipe is None:
        return
    with needs("train"):
        from glia_train.recipe import MODEL, read_recipe
    names = {
        option: parameter.name
        for parameter in context.command.params
        for option in (text.removeprefix("--").replace("-", "_") for text in parameter.opts)
        if parameter.param_type_name == "option" and option not in ("help", "set", "debug", "verbose", "_v")
    }
    options = read_recipe(recipe, names)
    context.meta[_RECIPE_MODEL] = options.pop(MODEL, {})
    context.default_map = {names[option]: value for option, value in options.items()}


@click.command()
@click.argument("recipe", required=False, is_eager=True, callback=_read_recipe, expose_value=False)
@dataset_options
@click.option("--out", required=True, type=click.Path(), help="The folder of the run.")
@click.option(
    "--backbone-weights",
    help="Where pretrained weights come from: hub (downloads), random, package (a hybrid's stem), or a file.",
)
@model_options
@click.option("--epochs", type=click.IntRange(min=0), default=10, show_default=True, help="Passes over the pictures.")
@click.option("--crops", type=click.IntRange(min=1), default=1, show_default=True,
              help="Crops of a picture in an epoch.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Crops in a step.")
@click.option("--micro-batch-size", type=click.IntRange(min=1),
              help="Crops in memory at once; the gradient is still that of the batch. Default: all.")  # fmt: skip
@click.option("--lr", type=float, default=3e-4, show_default=True, help="The learning rate; it falls along a cosine.")
@click.option("--backbone-lr", type=float,
              help="The same for the pretrained weights of a backbone that is trained too; default: --lr.")  # fmt: skip
@click.option("--fit-head", is_flag=True,
              help="Fit the linear head by ridge regression before the first step.")  # fmt: skip
@click.option("--warmup-epochs", type=float, default=0.0, show_default=True,
              help="Epochs in which the learning rate rises first.")  # fmt: skip
@click.option("--weight-decay", type=float, default=1e-2, show_default=True, help="The weight decay of AdamW.")
@click.option("--clip-norm", type=float, help="Greatest norm of the gradient; default: it is left.")
@click.option("--ema", type=float, help="Decay of a moving average of the weights, for example 0.999; default: none.")
@click.option("--loss", type=click.Choice(["mse-rho", "plcc"]), default="mse-rho", show_default=True,
              help="The loss: that of LoDa's code, or (1 - correlation) / 2.")  # fmt: skip
@click.option("--ranking", type=float, default=0.0, show_default=True, metavar="WEIGHT",
              help="Weight of a second loss, over pairs of distorted copies.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]),
              help="Of matrix products; default: bf16 where the hardware computes in it, else fp32.")  # fmt: skip
@click.option(
    "--seed", type=int, default=3407, show_default=True, help="Fixes the split, the first weights and the order."
)
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default: one per core.")
@click.option("--cache/--no-cache", default=True, show_default=True,
              help="Keep on disk what a frozen backbone makes of the pictures.")  # fmt: skip
@click.option(
    "--cache-dir",
    type=click.Path(),
    metavar="DIR",
    help="Keep it there, for other runs too; default: in the run's folder until the run is complete.",
)
@click.option(
    "--score-range",
    type=(float, float),
    help="Least and greatest score of the labels' scale; default: the dataset's, or those of the labels.",
)
@click.option("--scale", type=(float, float),
              help="Least and greatest score of the model, as 0 100; default: those of the labels.")  # fmt: skip
@click.option("--half-weights", is_flag=True,
              help="Round the weights to half precision at the end, for files of half the size.")  # fmt: skip
@click.option("--adapter-only", is_flag=True, help="Leave the frozen backbone out of the checkpoint.")
@click.option("--test/--no-test", "measure_test", default=True, show_default=True,
              help="Measure the test part, once, at the end.")  # fmt: skip
@click.option("--train-on-validation", is_flag=True,
              help="Train on the validation part too, once all choices are made.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if there is one.")
@overwrite_option
def train(
    labelled: DatasetOptions,
    out: str,
    backbone_weights: str | None,
    model: ModelOptions,
    resume: bool,
    overwrite: bool,
    cache_dir: str | None,
    **options: Any,
) -> None:
    """Train a model on pictures with scores.

    RECIPE is a YAML file of options, or the name of one that comes with glia-rt: biq2021 and kadid10k, for these
    datasets, and starter, which made the model that glia-rt ships. An option on the command line goes before the
    recipe's.

    A validation part is cut from the training part, and measured after every epoch. The test part is measured once.
    """
    with needs("train"):
        from glia_train.options import TrainOptions
        from glia_train.train import Origin
        from glia_train.train import train as run
    config = model.config()
    result = run(
        labelled.read(),
        out,
        config,
        TrainOptions(**options),
        Origin(backbone_weights, None if model.checkpoint is None else Path(model.checkpoint)),
        overwrite=overwrite,
        resume=resume,
        cache_dir=cache_dir,
        console=make_console(stderr=True),
    )
    command = ["glia-rt", "export", str(result.checkpoint)]
    if options["adapter_only"]:
        command += ["--backbone-weights", backbone_weights or "SOURCE"]
    tell(f"wrote {result.checkpoint}; next:\n  {shlex.join(command)}")
