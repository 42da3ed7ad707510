"""Does the score fall as a photograph is distorted more? Every distortion at every level.

    python benchmarks/monotone.py starter --json monotone.json    # or a bundle, or a checkpoint
    python benchmarks/monotone.py starter --root BIQ2021

The photographs are ten of wheels at their full size, which no training saw. Their figures are also given without the
picture of stars, which is points on black. With --root the photographs are 80 of BIQ2021's validation part in two
groups: the 40 darkest, and 40 others that are rated over the middle of the scale.

Prints the mean Spearman correlation of score with level for each distortion. Level 0 is the photograph itself. -1 means
that the score falls from each level to the next. A copy is ruined if its level is 5. The starter's figures are in
benchmarks/results/starter/monotone.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import common
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from glia_export.demo.data import PHOTOGRAPHS, read_photograph
from glia_rt.machine import cpu_count
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.scorer import Scorer
from glia_rt.starter.paths import is_bundle
from glia_rt.versions import installed_versions
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.splits import split_dataset
from glia_train.datasets.table import read_dataset
from glia_train.distortions import DISTORTIONS, LEVELS, UNORDERED, distort
from glia_train.ranking import HELD_OUT

BATCH = 8
SEED = 3407
#: Photographs in each group of the validation part.
GROUP = 40
#: The photograph of stars.
STARS = "hubble_deep_field"
T = TypeVar("T")


def main() -> None:
    """Score all copies, and print a line for each distortion and each group of photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle or a checkpoint")
    parser.add_argument("--root", help="the folder of BIQ2021, for photographs of its validation part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if arguments.root is None:
        scores = score_levels(arguments.model, [read_photograph(one) for one in PHOTOGRAPHS])
        others = [i for i, one in enumerate(PHOTOGRAPHS) if one.name != STARS]
        groups = {
            "of wheels": scores,
            "of wheels, without the stars": {name: rows[others] for name, rows in scores.items()},
        }
    else:
        photographs = validation_photographs(arguments.root)
        groups = {name: score_levels(arguments.model, each) for name, each in photographs.items()}
    found = {group: figures(each) for group, each in groups.items()}
    for group, distortions in found.items():
        print_table(group, distortions, len(next(iter(groups[group].values()))))
    if arguments.json is not None:
        facts = {"hardware": common.hardware(), "versions": installed_versions(*common.PACKAGES)}
        facts["engine"] = engine(arguments.model)
        arguments.json.write_text(json.dumps(facts | {"photographs": found}, indent=2) + "\n")


def validation_photographs(root: str) -> dict[str, list[Pixels]]:
    """Return two groups of photographs of BIQ2021's validation part: the darkest, and others drawn at random."""
    pictures = split_dataset(read_dataset("biq2021", root), SEED).validation
    with ThreadPoolExecutor(cpu_count()) as pool:
        light = np.array(list(pool.map(lambda picture: read_image(picture.source()).mean(), pictures)))
    dark, rest = np.split(light.argsort(kind="stable"), [GROUP])
    good = [i for i in np.random.default_rng(SEED).permutation(rest) if pictures[i].score > 0.5][:GROUP]
    return {
        name: [read_image(pictures[i].source()) for i in chosen]
        for name, chosen in {"dark": dark, "others": good}.items()
    }


def print_table(group: str, found: Mapping[str, Mapping[str, Any]], photographs: int) -> None:
    """Print what `figures` returned, and how many ruined copies score at least as high as their photographs."""
    columns = ("distortion", "correlation", "falling at every level", "ruined, not lower", "")
    table = Table(*columns, box=None, title=f"photographs: {group}")
    for name, facts in sorted(found.items(), key=lambda item: item[1]["correlation"]):
        counts = [f"{facts[key]} of {photographs}" for key in ("falling", "not_lower")]
        table.add_row(name, f"{facts['correlation']:.3f}", *counts, "held out" if facts["held_out"] else "")
    total = sum(facts["not_lower"] for facts in found.values())
    table.add_section()
    table.add_row("all", "", "", f"{total} of {photographs * len(found)}")
    Console().print(table)


def score_levels(model: str, photographs: Sequence[Pixels]) -> dict[str, np.ndarray]:
    """Return the scores (photographs, levels 0 to 5) for each distortion."""
    names = [name for name in DISTORTIONS if name not in UNORDERED]
    jobs = [(at, name, level) for at in range(len(photographs)) for name in names for level in range(1, LEVELS + 1)]

    def make(job: tuple[int, str, int]) -> Pixels:
        at, name, level = job
        return distort(photographs[at], name, level, np.random.default_rng([SEED, at]))

    with ThreadPoolExecutor(cpu_count()) as pool:
        copies = (picture for part in in_batches(jobs, 4 * BATCH) for picture in pool.map(make, part))
        scores = score(model, [*photographs], copies)
    originals = scores[: len(photographs)]
    levels = scores[len(photographs) :].reshape(len(photographs), len(names), LEVELS)
    return {name: np.column_stack([originals, levels[:, i]]) for i, name in enumerate(names)}


def figures(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return for each distortion the correlation of what `score_levels` returned with the level.

    `falling` counts the photographs whose score falls at every level, and `not_lower` those whose ruined copy scores at
    least as high.
    """
    found = {}
    for name, rows in scores.items():
        correlations = [float(spearmanr(row, range(LEVELS + 1)).statistic) for row in rows]
        found[name] = {
            "correlation": round(float(np.mean(correlations)), 4),
            "falling": int((np.diff(rows, axis=1) < 0).all(axis=1).sum()),
            "not_lower": int((rows[:, -1] >= rows[:, 0]).sum()),
            "held_out": name in HELD_OUT,
        }
    return found


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def engine(model: str) -> str:
    """Return what computes the scores of a model."""
    if not is_bundle(model):
        return "PyTorch, fp32"
    with Scorer.open(model) as scorer:
        return f"{scorer.backend.library}, {scorer.backend.precision}"


def score(model: str, first: Sequence[Pixels], rest: Iterator[Pixels]) -> np.ndarray:
    """Return the scores of pictures, by a bundle's usual backend or by PyTorch in float32."""
    pictures = (picture for part in (first, rest) for picture in part)
    if is_bundle(model):
        with Scorer.open(model) as scorer:
            return np.concatenate([scorer.score_batch(batch) for batch in in_batches(pictures, BATCH)])
    checkpoint = Checkpoint.load(model)
    built, names = checkpoint.build_model(), [one.name for one in checkpoint.contract.inputs]
    found = []
    with torch.inference_mode():
        for batch in in_batches(pictures, BATCH):
            inputs = [make_inputs(picture, checkpoint.contract) for picture in batch]
            stacked = [torch.from_numpy(np.stack([each[name] for each in inputs])) for name in names]
            found.append(built.score(*stacked).numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    main()
