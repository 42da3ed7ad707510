"""Labelled pictures, as tests of training and evaluation want them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from glia_train.datasets.base import Dataset
from glia_train.datasets.csv import read_labels

PARTS = ("train", "validation", "test", "test")


def write_labels(path: Path, pictures: Path, columns: Mapping[str, Sequence[object]] | None = None) -> Path:
    """Write labels of the 32 pictures of the fixture `pictures`, with random scores and an official split.

    Every second picture is in the test part.

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


def noise_dataset(folder: Path, count: int, height: int, width: int) -> Dataset:
    """Write pictures of noise and their labels. The brighter the noise, the higher the score: 0, 1, ..., count - 1."""
    rng = np.random.default_rng(0)
    rows = ["path,score"]
    for i in range(count):
        pixels = rng.integers(0, 250 * (i + 1) // count, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        rows.append(f"{i:02}.png,{i}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return read_labels(folder / "labels.csv")
