"""The trainings behind docs/starter.md, on BIQ2021: baseline, growth, ablations, and how to make the starter one's own.

    python benchmarks/starter_search.py --root BIQ2021 --out runs              # all of them, hours on 2 cores
    python benchmarks/starter_search.py --root BIQ2021 --out runs ridge swapped

A training that is complete is not repeated, and one that broke off goes on. Each differs from the recipe `starter` in
what `TRAININGS` says. The validation part of glia-rt's own split is measured, whatever is trained on, and nothing else.
The figures go to benchmarks/results/starter/search.json.

`adapted` needs `without_ss02`: that model is fine-tuned on some of ss02's training pictures, in five draws of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from rich.console import Console

from glia_rt.versions import installed_versions
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.base import Dataset, LabelledPicture, Part
from glia_train.datasets.splits import Split, split_dataset
from glia_train.datasets.table import read_dataset
from glia_train.evaluate import SEED, evaluate
from glia_train.models.table import read_config
from glia_train.options import TrainOptions
from glia_train.recipe import read_recipe
from glia_train.train import Origin, train

RESULT = Path(__file__).parent / "results" / "starter" / "search.json"
RECIPE = "starter"
ADAPTED = "adapted"
HELD_BACK = "ss02"
#: Numbers of pictures to fine-tune on, all of ss02's if None, and epochs for each. Draws of each.
ADAPT = {100: 10, 500: 5, None: 3}
DRAWS = 5


@dataclass(frozen=True)
class Training:
    """What one training has that the recipe has not.

    Attributes:
        pictures: Number of training pictures, the first of one random order; None for all.
        family: The family of the model.
        model: Options of the model's config. A GLIANet's are added to the recipe's.
        options: Options of training. The recipe's `half_weights` is left out in any case, to measure what was trained.
        without: A subset that is not trained on.
    """

    pictures: int | None = None
    family: str = "glianet"
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    without: str | None = None


def ridge(pictures: int | None = None, without: str | None = None) -> Training:
    """Return the baseline, which has no step of training."""
    options = {"epochs": 0, "warmup_epochs": 0.0, "backbone_lr": None, "ranking": 0.0, "ema": None}
    return Training(pictures, "ridge", options=options, without=without)


def ablation(**model: Any) -> Training:
    """Return a training of the paper's architecture, without the second head, for three epochs on 2,500 pictures."""
    return Training(2500, model={"statistics": False} | model, options={"epochs": 3, "fit_head": False})


#: The baseline; growth, ranking, averaging and mosaics with all of the starter; ablations of the paper's architecture,
#: all of them with heads that start from nothing, and the stem with a linear head alone; and a model to adapt.
TRAININGS: Mapping[str, Training] = {
    "ridge": ridge(),
    "ridge_2000": ridge(2000),
    "ridge_2500": ridge(2500),
    "ridge_5000": ridge(5000),
    "starter_2500": Training(2500, options={"epochs": 3}),
    "without_ranking_2500": Training(2500, options={"epochs": 3, "ranking": 0.0}),
    "without_average_2500": Training(2500, options={"epochs": 3, "ema": None}),
    "two_mosaics_2500": Training(2500, options={"epochs": 3, "crops": 2}),
    "starter_2000": Training(2000, options={"epochs": 3}),
    "starter_5000": Training(5000, options={"epochs": 3}),
    "fitted_linear_head": Training(2500, "ridge", {"tune_backbone": True, "dropout": 0.2}, {"epochs": 3}),
    "linear_head": Training(2500, "ridge", {"tune_backbone": True, "dropout": 0.2}, {"epochs": 3, "fit_head": False}),
    "glia": ablation(),
    "global_view_only": ablation(main="global_view", guidance="global_view"),
    "fragments_only": ablation(main="fragments", guidance="fragments"),
    "swapped": ablation(main="global_view", guidance="fragments"),
    "without_fusion": ablation(fusion=False),
    "without_refinement": ablation(refinement=False),
    "ridge_without_ss02": ridge(without=HELD_BACK),
    "without_ss02": Training(options={"epochs": 3}, without=HELD_BACK),
}


def main() -> None:
    """Run the trainings that are named, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="the folder of BIQ2021")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    known = [*TRAININGS, ADAPTED]
    parser.add_argument("names", nargs="*", choices=[[], *known], metavar="NAME", help=f"default: {', '.join(known)}")
    arguments = parser.parse_args()
    search = Search(read_dataset("biq2021", arguments.root), arguments.out)
    for name in arguments.names or known:
        figures = search.adapt() if name == ADAPTED else search.run(name)
        found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        found[name] = {"hardware": common.hardware(), "versions": installed_versions("torch", "timm")} | figures
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(found, indent=2) + "\n")


class Search:
    """BIQ2021's training and validation parts, and the trainings on shares of them."""

    def __init__(self, dataset: Dataset, out: Path) -> None:
        self._out = out
        self._split: Split = split_dataset(dataset, SEED)
        self._order = np.random.default_rng(0).permutation(len(self._split.train))
        self._console = Console(stderr=True)
        allowed = {one.name for one in dataclasses.fields(TrainOptions)} | {"dataset", "backbone_weights", "test"}
        self._recipe = read_recipe(RECIPE, allowed)

    def run(self, name: str) -> dict[str, Any]:
        """Run a training, or go on with it, and return its validation figures."""
        pictures, config, options = self.plan(TRAININGS[name])
        out = self._train(name, self._dataset(pictures, self._split.validation), config, options)
        precision = Checkpoint.load(out).trained_on["machine"]["precision"]
        return {"pictures": len(pictures), "precision": precision} | self._measure(out, self._split.validation)

    def plan(self, training: Training) -> tuple[list[LabelledPicture], Any, TrainOptions]:
        """Return the pictures that a training takes, its config and its options."""
        pictures = [self._split.train[i] for i in self._order[: training.pictures]]
        pictures = [picture for picture in pictures if picture.subset != training.without]
        recipe = self._recipe["model"] if training.family == "glianet" else {}
        return pictures, read_config(training.family, recipe | dict(training.model)), self._options(training.options)

    def adapt(self) -> dict[str, Any]:
        """Fine-tune the model that has not seen a subset on some of it, and return the SRCC on its validation part."""
        base = self._out / "without_ss02" / "checkpoint.pt"
        held_back = [picture for picture in self._split.train if picture.subset == HELD_BACK]
        validation = [picture for picture in self._split.validation if picture.subset == HELD_BACK]
        found: dict[str, Any] = {"0": [self._measure(base, validation)["srcc"]]}
        config = read_config("glianet", self._recipe["model"])
        for count in ADAPT:
            for draw in range(DRAWS):
                order = np.random.default_rng([SEED, draw]).permutation(len(held_back))[:count]
                dataset = self._dataset([held_back[i] for i in order], validation)
                name = f"{ADAPTED}_{len(order)}_{draw}"
                out = self._train(name, dataset, config, self.adapting(count, draw), base)
                found.setdefault(str(len(order)), []).append(self._measure(out, validation)["srcc"])
        return {"srcc": found}

    def adapting(self, count: int | None, draw: int) -> TrainOptions:
        """Return the options of fine-tuning on a number of pictures."""
        changes = {"epochs": ADAPT[count], "batch_size": 32, "lr": 1e-4, "backbone_lr": 5e-5, "seed": SEED + draw}
        return self._options(changes | {"fit_head": False, "ranking": 0.0})

    def _options(self, changes: Mapping[str, Any]) -> TrainOptions:
        """Return the recipe's options with changes."""
        names = {one.name for one in dataclasses.fields(TrainOptions)}
        recipe = {key: value for key, value in self._recipe.items() if key in names}
        recipe |= {"scale": tuple(recipe["scale"]), "half_weights": False}
        recipe |= {"train_on_validation": False, "measure_test": False}
        return TrainOptions(**recipe | dict(changes))

    def _train(self, name: str, dataset: Dataset, config: Any, options: TrainOptions, base: Path | None = None) -> Path:
        origin = Origin(self._recipe["backbone_weights"]) if base is None else Origin(None, base)
        out = self._out / name
        self._console.rule(name)
        train(dataset, out, config, options, origin, resume=True, console=self._console)
        return out / "checkpoint.pt"

    def _dataset(self, train_on: Sequence[LabelledPicture], validation: Sequence[LabelledPicture]) -> Dataset:
        """Return a dataset of pictures to train on and to validate with. The test part is in it, and is left alone."""
        parts: dict[Part, Sequence[LabelledPicture]] = {"train": train_on, "validation": validation}
        parts["test"] = self._split.test
        pictures = [dataclasses.replace(one, part=part) for part, each in parts.items() for one in each]
        return Dataset("biq2021", tuple(pictures), (0.0, 1.0))

    def _measure(self, checkpoint: Path, pictures: Sequence[LabelledPicture]) -> dict[str, Any]:
        dataset = self._dataset(self._split.train, pictures)
        found = evaluate(checkpoint, dataset, "validation")
        subsets = {name: round(one.metrics.srcc, 4) for name, one in found.subsets.items()}
        figures: dict[str, Any] = {"srcc": round(found.overall.metrics.srcc, 4)}
        if subsets:
            figures |= {"within": round(float(np.mean(list(subsets.values()))), 4), **subsets}
        return figures


if __name__ == "__main__":
    main()
