"""Recipes, and the options of `glia-rt train` that they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glia_rt.cli.main import main
from glia_rt.errors import UsageError
from glia_train.datasets.table import DATASETS
from glia_train.recipe import names, read_recipe

Capture = pytest.CaptureFixture[str]
#: What the recipes that come with glia-rt set.
OPTIONS = ["dataset", "epochs", "batch_size", "crops", "lr", "weight_decay"]


def test_every_dataset_has_a_recipe() -> None:
    assert names() == sorted([*DATASETS, "starter"])
    for name in DATASETS:
        assert read_recipe(name, OPTIONS)["dataset"] == name


def test_the_starters_recipe_trains_on_biq2021(tmp_path: Path, capsys: Capture) -> None:
    """Its options are known: what is refused is the folder without the dataset."""
    assert main(["train", "starter", "--root", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "BIQ2021" in capsys.readouterr().err


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 3e-4\nmodel:\n  mlp: loda\n")
    assert read_recipe(str(tmp_path / "a.yaml"), ["lr"]) == {"lr": 3e-4, "model": {"mlp": "loda"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", r"there is no option epohcs; did you mean epochs\?"),
        ("no_epochs: 3", r"there is no option no_epochs; did you mean epochs\?"),
        ("colour: red", "there is no option colour; there are epochs, model"),
        ("- epochs", "a recipe has lines of OPTION: VALUE"),
        ("epochs: [", "not YAML"),
        ("epochs: 1\nepochs: 2", "not YAML: .*duplicate key"),
        ("model: 3", "model has lines of OPTION: VALUE of its own"),
        ("", "a recipe has lines"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"a.yaml: {message}"):
        read_recipe(str(tmp_path / "a.yaml"), ["epochs"])


def test_no_such_recipe(tmp_path: Path) -> None:
    message = "koniq: No such file or directory; give a file, or one of biq2021, kadid10k, starter"
    with pytest.raises(UsageError, match=message):
        read_recipe("koniq", [])


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 20 * (i + 1), (230, 240, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("path,score\n" + "".join(f"{i}.png,{i}\n" for i in range(12)))
    return tmp_path / "labels.csv"


@pytest.fixture
def trained(labels: Path, tmp_path: Path, capsys: Capture) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    def run(recipe: str, *flags: str) -> tuple[int, str, dict[str, Any]]:
        (tmp_path / "recipe.yaml").write_text(recipe)
        status = main(
            ["train", str(tmp_path / "recipe.yaml"), "--data", str(labels), "--out", str(tmp_path / "run"), *flags]
        )
        record = tmp_path / "run" / "run.json"
        return status, capsys.readouterr().err, json.loads(record.read_text()) if record.exists() else {}

    return run


RECIPE = """
backbone_weights: random
epochs: 1
batch_size: 3
lr: 1e-3
score_range: [0, 20]
model:
  backbone: vit_tiny_r_s16_p8_224
  mlp: loda
"""


def test_a_recipe_and_flags(trained: Callable[..., tuple[int, str, dict[str, Any]]]) -> None:
    """A flag goes before the recipe; model options of both come together."""
    status, said, record = trained(RECIPE, "--batch-size", "4", "--set", "model.residual=false")
    assert status == 0, said
    assert (record["options"]["batch_size"], record["options"]["lr"]) == (4, 1e-3)
    assert record["score_range"] == [0, 20]
    config = record["config"]
    assert (config["backbone"], config["mlp"], config["residual"]) == ("vit_tiny_r_s16_p8_224", "loda", False)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("epochs: many", "'many' is not a valid integer"),
        ("backbone_weights: random\nmodel: {mpl: loda}", "glianet has no option mpl"),
        (
            "epochs: 1",
            "--backbone-weights is needed: hub (downloads), random, package (a hybrid's stem), or a file; or --from",
        ),
        ("dataset: kadid10k", "--dataset and --data are two sources of labels"),
    ],
)
def test_recipes_that_cannot_be_run(
    trained: Callable[..., tuple[int, str, dict[str, Any]]], recipe: str, message: str
) -> None:
    status, said, record = trained(recipe)
    assert (status, record) == (2, {})
    assert message in said


def test_a_folder_of_a_recipes_name_is_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kadid10k").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_recipe("kadid10k", OPTIONS)["dataset"] == "kadid10k"
