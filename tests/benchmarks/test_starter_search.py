"""benchmarks/starter_search.py: every training that it names can be begun, on the pictures that it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glia_train.datasets.base import Dataset, LabelledPicture
from glia_train.models.table import family_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """As many pictures as BIQ2021 has, in the same subsets."""
    rng = np.random.default_rng(0)
    pictures = [
        LabelledPicture(f"{i}.jpg", None, score, subset=f"ss0{1 + min(i % 6, 2)}", part="train" if i % 6 else "test")
        for i, score in enumerate(rng.random(12_000))
    ]
    return Dataset("biq2021", tuple(pictures), (0.0, 1.0))


@pytest.fixture
def search(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("starter_search").Search(dataset, tmp_path)


def test_every_training_has_a_config_and_options(search: Any) -> None:
    trainings = importlib.import_module("starter_search").TRAININGS
    plans = {name: search.plan(training) for name, training in trainings.items()}
    for pictures, config, options in plans.values():
        assert family_of(config).inputs(config)
        assert options.scale == (0, 100)
        assert not options.measure_test
        assert not options.train_on_validation
        assert len({picture.name for picture in pictures}) == len(pictures)
    assert len(plans["ridge"][0]) == 9000
    assert {picture.name for picture in plans["starter_2000"][0]} < {p.name for p in plans["starter_2500"][0]}
    assert not any(picture.subset == "ss02" for picture in plans["without_ss02"][0])
    assert plans["without_ranking_2500"][2].ranking == 0
    ablations = [config for name, (_, config, _) in plans.items() if "statistics" in trainings[name].model]
    assert len(ablations) == len(set(ablations)) == 6
    for name in ("glia", "linear_head"):
        assert not plans[name][2].fit_head
    for count, epochs in importlib.import_module("starter_search").ADAPT.items():
        options = search.adapting(count, 1)
        assert (options.epochs, options.batch_size, options.fit_head) == (epochs, 32, False)


def test_the_test_part_is_not_among_the_pictures(search: Any, dataset: Dataset) -> None:
    training = {picture.name for picture in dataset.pictures if picture.part == "train"}
    trainings = importlib.import_module("starter_search").TRAININGS
    for one in trainings.values():
        assert {picture.name for picture in search.plan(one)[0]} < training
