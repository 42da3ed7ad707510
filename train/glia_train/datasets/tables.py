"""Reader of the label files that datasets come with: CSV with a header, with errors that name the line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glia_rt.errors import UsageError
from glia_rt.files import csv_rows
from glia_train.datasets.base import some_names

#: Characters of a cell that a message shows.
_SHOWN = 60


@dataclass(frozen=True)
class Row:
    """A row of a label file.

    Attributes:
        where: The file and the line, for messages.
        line: The number of the line, from 1.
        cells: The row's cells.
        places: The place in `cells` of each column that was asked for and is there.
    """

    where: str
    line: int
    cells: Sequence[str]
    places: Mapping[str, int]

    def get(self, column: str) -> str | None:
        """Return a cell; None if the file has no such column."""
        return self.cells[self.places[column]] if column in self.places else None

    def text(self, column: str) -> str:
        """Return a cell that must not be empty.

        Raises:
            UsageError: It is empty.
        """
        if not (value := self.get(column)):
            raise UsageError(f"{self.where}: the {column} is empty")
        return value

    def number(self, column: str) -> float:
        """Return a cell that must be a finite number.

        Raises:
            UsageError: It is not.
        """
        return finite(self.where, column, self.get(column))


def finite(where: str, column: str, value: object) -> float:
    """Return a value as a number.

    Raises:
        UsageError: It is no finite number.
    """
    try:
        number = float(value)  # type: ignore[arg-type] # what is no number raises
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise UsageError(f"{where}: the {column} must be a finite number, not {shown}")
    return number


def places_of(names: Sequence[str], column: str) -> list[int]:
    """Return the places of a column: those of its very name, or else of names that differ in case or in spaces."""
    exact = [i for i, name in enumerate(names) if name == column]
    wanted = column.strip().lower()
    return exact or [i for i, name in enumerate(names) if name.strip().lower() == wanted]


def read_text(path: Path) -> str:
    """Return the text of a label file, UTF-8 with or without BOM.

    Raises:
        UsageError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error


def read_rows(path: Path, columns: Sequence[str], advice: str, optional: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a CSV whose first line names the columns. Lines without text are left out.

    A column is found whatever its case, unless several differ in case only.

    Args:
        path: The file.
        columns: Columns that it must have. It may have others.
        advice: What the file should look like, for the message about its header.
        optional: Columns that are read where they are there.

    Raises:
        UsageError: The file cannot be read, is not CSV, or lacks a column.
    """
    rows = csv_rows(io.StringIO(read_text(path), newline=""))
    try:
        header = next(rows, [])
        places: dict[str, int] = {}
        missing = []
        for column in dict.fromkeys([*columns, *optional]):
            found = places_of(header, column)
            if len(found) > 1:
                raise UsageError(f"{path}, line 1: a column is there twice: {column}; rename the one that is not meant")
            if found:
                places[column] = found[0]
            elif column in columns:
                missing.append(column)
        if missing:
            raise UsageError(
                f"{path}, line 1: no column {' and no column '.join(missing)}; {advice}; "
                f"the line has {some_names(header)}"
            )
        for row in rows:
            if not any(cell.strip() for cell in row):  # spreadsheets leave such lines at the end
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise UsageError(f"{where}: {len(row)} fields where the header has {len(header)}")
            yield Row(where, rows.line_num, row, places)
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: not CSV: {error}") from error
