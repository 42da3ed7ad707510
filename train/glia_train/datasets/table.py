"""The table of datasets, and the function that reads one of them or a user's own labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from glia_rt.errors import UsageError
from glia_train.datasets import biq2021, kadid10k
from glia_train.datasets.base import Dataset
from glia_train.datasets.csv import Columns, read_labels
from glia_train.datasets.parquet import SUFFIX, read_parquet

#: The reader of each published dataset, by its name on the command line. It takes the dataset's folder.
DATASETS: Final[Mapping[str, Callable[[Path], Dataset]]] = {
    biq2021.NAME: biq2021.read,
    kadid10k.NAME: kadid10k.read,
}


def read_dataset(
    name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, columns: Columns | None = None
) -> Dataset:
    """Return a dataset. Whether its pictures are there is not looked at; see `require_pictures`.

    Args:
        name: The name of a published dataset, as in `DATASETS`; or labels of the user's own: a CSV file, a Parquet
            file, or a folder of Parquet files, which may lie in its folder `data`, where Hugging Face has them.
        root: The folder that a published dataset was unpacked to. None for the user's own labels.
        columns: Which columns of the user's own labels to use. None for a published dataset.

    Raises:
        UsageError: There is no such dataset, or its labels cannot be used.
    """
    text = os.fspath(name)
    if text in DATASETS:
        if root is None:
            raise UsageError(f"{text} needs --root: the folder that it was unpacked to")
        if columns is not None and columns != Columns():
            raise UsageError(f"{text} has columns of its own: drop --path-column, --score-column and --group-column")
        return DATASETS[text](Path(root))
    path = Path(text)
    if root is not None:
        raise UsageError(f"there is no dataset {text!r}; --root goes with {', '.join(DATASETS)}")
    if path.is_dir():
        if not (files := _parquet_files(path) or _parquet_files(path / "data")):
            raise UsageError(f"{path}: a folder without {SUFFIX} files; give a CSV, or a name: {', '.join(DATASETS)}")
        return read_parquet(files, columns)
    if path.suffix.lower() == SUFFIX:
        return read_parquet([path], columns)
    if not path.suffix and not path.exists():
        raise UsageError(f"there is no dataset {text!r}; there are {', '.join(DATASETS)}, and labels of your own")
    return read_labels(path, columns)


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() == SUFFIX)
