"""The table of families, and functions that read a config and make a model of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from pydantic import TypeAdapter, ValidationError

from glia_rt.contract import Contract
from glia_rt.errors import UsageError
from glia_train.backbones import load_backbone_weights
from glia_train.models.base import Model
from glia_train.models.glianet import GLIANet
from glia_train.models.ridge import Ridge

#: Every family, by the name that checkpoints and bundles give it.
FAMILIES: Final[dict[str, type[Model]]] = {family.family: family for family in (GLIANet, Ridge)}


def family_of(config: Any) -> type[Model]:
    """Return the family that a config belongs to.

    Raises:
        UsageError: The config belongs to no family.
    """
    for family in FAMILIES.values():
        if type(config) is family.Config:
            return family
    raise UsageError(f"a {type(config).__name__} is the config of no family; there are {', '.join(FAMILIES)}")


def read_config(family: str, record: Mapping[str, Any]) -> Any:
    """Return the config of a family, made from JSON types.

    Raises:
        UsageError: There is no such family, a field is unknown, or a field does not take its value.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise UsageError(f"there is no family {family!r}; there are {', '.join(FAMILIES)}")
    kind = FAMILIES[family].Config
    fields = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(record) - set(fields)):
        raise UsageError(f"{family} has no option {', '.join(unknown)}; it has {', '.join(fields)}")
    try:
        # The record is checked as JSON, because a strict check of JSON takes a list for a tuple and an object for a
        # dataclass.
        return TypeAdapter(kind).validate_json(json.dumps(dict(record), allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:1]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{family}: {f'{field}: ' if field else ''}{reason}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{family}: {error}; values are text, finite numbers, true or false, and lists") from error


def untrained(
    config: Any, backbone_weights: str | Mapping[str, str] = "random", seed: int = 0
) -> tuple[Model, Contract]:
    """Return an untrained model in eval mode, and its contract.

    Training starts with this model, and speed is measured with it.

    Args:
        config: The config of a family, which fixes the architecture.
        backbone_weights: Source of the weights of each backbone, as for `load_backbone_weights`.
        seed: Seed of every random weight.

    Raises:
        UsageError: `load_backbone_weights` cannot get the weights, or no model can have this config.
        BundleError: The file does not hold the backbone's weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family_of(config)(config)
    for name, backbone in model.backbones().items():
        load_backbone_weights(backbone, source_of(backbone_weights, name))
    return model.eval(), model.contract()


def source_of(backbone_weights: str | Mapping[str, str], name: str) -> str:
    """Return where the weights of a backbone come from: one source serves all, a mapping has one for each name."""
    return backbone_weights if isinstance(backbone_weights, str) else backbone_weights[name]
