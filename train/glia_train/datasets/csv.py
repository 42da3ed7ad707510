"""Reader of a user's own labels: a CSV with the columns path,score[,reference]."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from glia_rt.errors import UsageError
from glia_train.datasets.base import COLUMNS, LabelledPicture


def read_labels(labels: str | os.PathLike[str]) -> list[LabelledPicture]:
    """Return the rows of a labels file.

    Args:
        labels: A CSV in UTF-8, with or without BOM. Its first line is path,score or path,score,reference, in any
            order. Relative paths start at the folder that the CSV is in. Scores rise with quality.

    Raises:
        UsageError: The file cannot be used; the message names the line.
    """
    labels = Path(labels)
    try:
        text = labels.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{labels}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{labels}: not UTF-8 (byte {error.start}): save it as UTF-8") from error

    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    pictures: list[LabelledPicture] = []
    seen: dict[str, int] = {}
    missing: list[str] = []
    try:
        header = next(rows, [])
        _check_header(labels, header)
        for row in rows:
            if not row:
                continue
            where = f"{labels}, line {rows.line_num}"
            picture = _parse_row(where, labels.parent, header, row)
            place = os.path.normpath(picture.path)
            if (first := seen.setdefault(place, rows.line_num)) != rows.line_num:
                raise UsageError(f"{where}: {picture.name} is in line {first} already: keep one of them")
            if not picture.path.is_file():
                missing.append(f"line {rows.line_num}: {picture.path}")
            pictures.append(picture)
    except csv.Error as error:
        raise UsageError(f"{labels}, line {rows.line_num}: not CSV: {error}") from error
    if missing:
        raise UsageError(
            f"{labels}: {len(missing)} of {len(pictures)} pictures are not there, first {missing[0]}; "
            "relative paths start at the folder of the labels file"
        )
    if not pictures:
        raise UsageError(f"{labels}: no rows after the header")
    if len({picture.score for picture in pictures}) == 1:
        raise UsageError(f"{labels}: every score is {pictures[0].score:g}: there is nothing to learn from")
    return pictures


def _check_header(labels: Path, header: Sequence[str]) -> None:
    allowed = f"the first line names the columns: {','.join(COLUMNS)}, of which reference may be left out"
    if missing := [column for column in COLUMNS[:2] if column not in header]:
        raise UsageError(f"{labels}, line 1: no column {' and no column '.join(missing)}; {allowed}")
    if unknown := [column for column in header if column not in COLUMNS]:
        raise UsageError(f"{labels}, line 1: unknown column {', '.join(map(repr, unknown))}; {allowed}")
    if len(set(header)) < len(header):
        raise UsageError(f"{labels}, line 1: a column is there twice; {allowed}")


def _parse_row(where: str, folder: Path, header: Sequence[str], row: Sequence[str]) -> LabelledPicture:
    if len(row) != len(header):
        raise UsageError(f"{where}: {len(row)} fields where the header has {len(header)}")
    fields = dict(zip(header, row, strict=True))
    if not fields["path"]:
        raise UsageError(f"{where}: the path is empty")
    try:
        score = float(fields["score"])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UsageError(f"{where}: the score must be a finite number, not {fields['score']!r}")
    if fields.get("reference") == "":
        raise UsageError(f"{where}: the reference is empty: give every picture one, or leave the column out")
    return LabelledPicture(fields["path"], folder / fields["path"], score, fields.get("reference"))
