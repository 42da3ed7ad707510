"""Recipes: options of `glia-rt train` as YAML. The folder `recipes` has one for each dataset, and that of the starter.

A recipe may have any option that the command has, with _ for -, and `model` with the options of the model's config.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from glia_rt.errors import UsageError

SUFFIX: Final = ".yaml"
#: The key of the options of the model's config.
MODEL: Final = "model"


def names() -> list[str]:
    """Return the names of the recipes that come with glia-rt."""
    return sorted(file.name.removesuffix(SUFFIX) for file in _folder().iterdir())


def _folder() -> Traversable:
    return resources.files("glia_train").joinpath("recipes")


def read_recipe(recipe: str, allowed: Collection[str]) -> dict[str, Any]:
    """Return the options of a recipe by name.

    Args:
        recipe: A YAML 1.2 file, or the name of a recipe that comes with glia-rt.
        allowed: The options that there are, beside `model`.

    Raises:
        UsageError: There is no such recipe, it is not YAML, or it has an option that there is not.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # A folder of a recipe's name is most likely the dataset.
        is_name = recipe in names() and not Path(recipe).is_file()
        file = _folder().joinpath(f"{recipe}{SUFFIX}") if is_name else Path(recipe)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{recipe}: {reason}; give a file, or one of {', '.join(names())}") from error
    try:
        # In YAML 1.2, which this reads, 3e-4 is a number and `no` is text.
        options = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise UsageError(f"{recipe}: not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UsageError(f"{recipe}: a recipe has lines of OPTION: VALUE, as epochs: 10")
    if unknown := [key for key in options if key not in {*allowed, MODEL}]:
        near = difflib.get_close_matches(unknown[0].replace("-", "_").removeprefix("no_"), [*allowed, MODEL], n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted({*allowed, MODEL}))}"
        raise UsageError(f"{recipe}: there is no option {unknown[0]}; {advice}")
    if not isinstance(options.get(MODEL, {}), dict):
        raise UsageError(f"{recipe}: {MODEL} has lines of OPTION: VALUE of its own, as mlp: loda")
    return options
