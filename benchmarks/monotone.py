"""Does the score fall as a photograph is distorted more? Every distortion at every level.

    python benchmarks/monotone.py starter                 # or a bundle, or a checkpoint
    python benchmarks/monotone.py starter --root BIQ2021
    python benchmarks/monotone.py run/checkpoint.pt --json

The photographs are ten of wheels, which no training saw. With --root they are 80 of BIQ2021's validation part in two
groups: the 40 darkest, and 40 others that are rated over the middle of the scale.

Prints the mean Spearman correlation of score with level for each distortion. Level 0 is the photograph itself. -1 means
that the score falls from each level to the next. A copy is ruined if its level is 5.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

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
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.splits import split_dataset
from glia_train.datasets.table import read_dataset
from glia_train.distortions import DISTORTIONS, LEVELS, UNORDERED, distort
from glia_train.ranking import HELD_OUT

BATCH = 8
SEED = 3407
#: Photographs in each group of the validation part.
GROUP = 40
T = TypeVar("T")


def main() -> None:
    """Score all copies, and print a line for each distortion and each group of photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle or a checkpoint")
    parser.add_argument("--root", help="the folder of BIQ2021, for photographs of its validation part")
    parser.add_argument("--json", action="store_true", help="print the scores, too, as JSON")
    arguments = parser.parse_args()
    if arguments.root is None:
        groups: Mapping[str, Sequence[Pixels]] = {"of wheels": [read_photograph(one) for one in PHOTOGRAPHS]}
    else:
        groups = validation_photographs(arguments.root)
    found = {group: measure(arguments.model, photographs) for group, photographs in groups.items()}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for group, distortions in found.items():
        print_table(group, distortions, len(groups[group]))


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
    """Print what `measure` returned, and how many ruined copies score at least as high as their photographs."""
    columns = ("distortion", "correlation", "falling at every level", "ruined, not lower", "")
    table = Table(*columns, box=None, title=f"photographs: {group}")
    for name, facts in sorted(found.items(), key=lambda item: item[1]["correlation"]):
        counts = [f"{facts[key]} of {photographs}" for key in ("falling", "not_lower")]
        table.add_row(name, f"{facts['correlation']:.3f}", *counts, "held out" if facts["held_out"] else "")
    total = sum(facts["not_lower"] for facts in found.values())
    table.add_section()
    table.add_row("all", "", "", f"{total} of {photographs * len(found)}")
    Console().print(table)


def measure(model: str, photographs: Sequence[Pixels]) -> dict[str, dict[str, Any]]:
    """Return for each distortion its scores, photographs by levels, and their correlation with the level.

    `falling` counts the photographs whose score falls at every level, and `not_lower` those whose ruined copy scores at
    least as high.
    """
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
    found = {}
    for i, name in enumerate(names):
        rows = np.column_stack([originals, levels[:, i]])  # (photographs, levels 0 to 5)
        correlations = [float(spearmanr(row, range(LEVELS + 1)).statistic) for row in rows]
        found[name] = {
            "correlation": float(np.mean(correlations)),
            "falling": int((np.diff(rows, axis=1) < 0).all(axis=1).sum()),
            "not_lower": int((rows[:, -1] >= rows[:, 0]).sum()),
            "held_out": name in HELD_OUT,
            "scores": rows.round(4).tolist(),
        }
    return found


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


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
