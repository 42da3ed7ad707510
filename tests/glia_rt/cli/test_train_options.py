"""Every field of a family's config can be set from the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from glia_rt.cli.main import main
from glia_rt.cli.train import ModelOptions
from glia_rt.errors import UsageError
from glia_train.models.glianet import ModelConfig

#: A value for each field that is not its default.
OTHERS: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "latent": 96,
    "heads": 4,
    "mlp": "loda",
    "residual": False,
    "interaction_init": 0.2,
    "dropout": 0.0,
    "tune_backbone": True,
    "main": "global_view",
    "guidance": "fragments",
    "fusion": False,
    "refinement": False,
    "statistics": True,
}


def options(*settings: str, **fields: Any) -> ModelOptions:
    values: dict[str, Any] = {"family": "glianet", "backbone": None, "tune_backbone": False, "settings": settings}
    return ModelOptions(**values | fields)


def test_there_is_a_value_for_every_field() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert all(OTHERS[field.name] != field.default for field in dataclasses.fields(ModelConfig))


@pytest.mark.parametrize("name", OTHERS)
def test_every_field_can_be_set(name: str) -> None:
    value = OTHERS[name]
    config = options(f"model.{name}={json.dumps(value) if isinstance(value, bool) else value}").config()
    assert config == dataclasses.replace(ModelConfig(), **{name: value})


def test_several_at_once_and_beside_the_flags() -> None:
    config = options(
        "model.mlp=loda", "model.latent=null", backbone="vit_tiny_patch16_224", tune_backbone=True
    ).config()
    assert config == ModelConfig(backbone="vit_tiny_patch16_224", mlp="loda", tune_backbone=True)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("mlp=loda", "--set mlp=loda is not model.OPTION=VALUE, as model.mlp=loda"),
        ("model.mlp", "--set model.mlp is not model.OPTION=VALUE"),
        ("model.=loda", "is not model.OPTION=VALUE"),
        ("train.lr=1", "is not model.OPTION=VALUE"),
        ("model.width=5", "glianet has no option width; it has backbone, latent, heads, mlp, residual"),
        ("model.latent=wide", "glianet: latent: Input should be a valid integer"),
        ("model.latent=1.5", "glianet: latent: "),
        ("model.mlp=wide", "glianet: mlp: Input should be 'narrow' or 'loda'"),
        ("model.dropout=1.5", r"glianet: dropout must lie in \[0, 1\), not 1.5"),
        ("model.residual=[", "glianet: residual: "),
        ("model.latent=010", "glianet: latent: Input should be a valid integer"),
        ("model.latent=1:30", "glianet: latent: Input should be a valid integer"),
        ("model.interaction_init=NaN", "glianet: .*finite numbers"),
        ("model.interaction_init=Infinity", "glianet: .*finite numbers"),
        ("model.latent=" + "[" * 3000, "glianet: latent: "),
    ],
)
def test_a_setting_that_cannot_be(setting: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        options(setting).config()


def test_a_backbone_is_named_once() -> None:
    with pytest.raises(UsageError, match="backbone is given twice"):
        options("model.backbone=vit_tiny_patch16_224", backbone="vit_small_patch16_224").config()


def test_a_family_that_is_none() -> None:
    with pytest.raises(UsageError, match="there is no family 'cnn'; there are glianet"):
        options(family="cnn").config()


def test_the_command_refuses_before_it_reads_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--data", str(tmp_path / "gone.csv"), "--out", str(tmp_path / "run"), "--backbone-weights", "random"]
    assert main(["train", *args, "--set", "model.width=5"]) == 2
    assert "glianet has no option width" in capsys.readouterr().err
