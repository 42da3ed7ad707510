"""Reader of a user's own labels: a CSV with a column of paths and a column of scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glia_rt.errors import UsageError
from glia_train.datasets.base import PARTS, Dataset, LabelledPicture, Part, join_groups
from glia_train.datasets.tables import read_rows

#: Columns that are read where the labels have them.
OPTIONAL: Final = ("reference", "split", "distortion", "subset")
#: Names of parts that labels files use, and the part that each one means.
PART_NAMES: Final[Mapping[str, Part]] = {
    **{part: part for part in PARTS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}


@dataclass(frozen=True)
class Columns:
    """The columns of a user's labels.

    The columns reference, split, distortion and subset are read too, where the labels have them. Other columns are
    left alone. A column is found whatever its case, unless several differ in case only.

    Attributes:
        path: The column of the pictures' paths. In Parquet it may hold the pictures themselves. None stands for path,
            in Parquet for image or path.
        score: The column of the scores, which rise with quality.
        group: A column of names that pictures share which must not be parted. An empty cell stands for the reference,
            or for the picture itself. None if there is no such column.
    """

    path: str | None = None
    score: str = "score"
    group: str | None = None


def read_labels(labels: str | os.PathLike[str], columns: Columns | None = None) -> Dataset:
    """Return the rows of a labels file. Whether the pictures are there is not looked at.

    Args:
        labels: A CSV in UTF-8, with or without BOM. Its first line names the columns, in any order. Relative paths
            start at the folder that the CSV is in. A column `split` is an official split: train, validation or test.
        columns: Which columns to use.

    Raises:
        UsageError: The file cannot be used; the message names the line.
    """
    labels, columns = Path(labels), columns or Columns()
    path_column = columns.path or "path"
    needed = [path_column, columns.score, *([columns.group] if columns.group else [])]
    advice = (
        f"the first line names the columns: {','.join(needed)}, and reference if several pictures show one content; "
        "--path-column, --score-column and --group-column name others"
    )
    pictures: list[LabelledPicture] = []
    seen: dict[str, int] = {}
    for row in read_rows(labels, needed, advice, OPTIONAL):
        name = row.text(path_column)
        path = labels.parent / name
        if (first := seen.setdefault(os.path.normpath(path), row.line)) != row.line:
            raise UsageError(f"{row.where}: {name} is in line {first} already: keep one of them")
        pictures.append(
            LabelledPicture(
                name,
                path,
                row.number(columns.score),
                reference=read_reference(row.where, row.get("reference")),
                group=row.get(columns.group) or None if columns.group else None,
                distortion=row.get("distortion") or None,
                subset=row.get("subset") or None,
                part=read_part(row.where, row.get("split")),
            )
        )
    return Dataset(os.fspath(labels), join_groups(pictures))


def read_part(where: str, text: str | None) -> Part | None:
    """Return the part of an official split that a cell names; None without such a column.

    Raises:
        UsageError: It names no part.
    """
    if text is None:
        return None
    if (part := PART_NAMES.get(text.strip().lower())) is None:
        raise UsageError(
            f"{where}: the split must be one of {', '.join(PARTS)}, not {text[:60]!r}; or rename the column"
        )
    return part


def read_reference(where: str, text: str | None) -> str | None:
    """Return the reference that a cell names; None without such a column.

    Raises:
        UsageError: It names none. The picture might then be parted from others of its content.
    """
    if text == "":
        raise UsageError(f"{where}: the reference is empty: give every picture one, or leave the column out")
    return text
