"""Labels of the pictures of the fixture `pictures`, as tests of evaluation want them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

PARTS = ("train", "validation", "test", "test")


def write_labels(path: Path, pictures: Path, columns: Mapping[str, Sequence[object]] | None = None) -> Path:
    """Write labels of all 32 pictures: random scores, and an official split with every second picture in its test part.

    Args:
        path: The CSV.
        pictures: The folder of the pictures.
        columns: Further columns, or other values of path, score and split.
    """
    files = sorted(pictures.iterdir())
    table: dict[str, Sequence[object]] = {
        "path": files,
        "score": np.random.default_rng(0).uniform(1, 5, len(files)).round(3).tolist(),
        "split": [PARTS[i % 4] for i in range(len(files))],
    } | dict(columns or {})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path
